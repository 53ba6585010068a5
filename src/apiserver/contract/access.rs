//! Who may do what.

use super::*;
use base64::Engine as _;
use serde_json::json;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn review(user: &str, groups: &[&str], verb: &str, resource: &str, namespace: &str) -> Value {
    json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": user, "groups": groups,
        "resourceAttributes": {"verb": verb, "resource": resource, "namespace": namespace}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_allows_is_refused_and_a_binding_allows_it() {
    let c = Cluster::start().await;
    c.pki.issue("eve", "eve", &["devs"], false);
    let eve = As::Cert("eve".into());
    let refused = c.call(Method::GET, MAPS, &eve, None).await.expect(403);
    let text = "configmaps is forbidden: User \"eve\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"";
    assert_eq!(refused["message"], text);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "devs"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "devs"}]});
    c.post(&format!("{RBAC}/namespaces/default/rolebindings"), binding)
        .await
        .expect(201);
    c.get(&format!("{RBAC}/namespaces/default/rolebindings"))
        .await
        .expect(200);
    c.call(Method::GET, MAPS, &eve, None).await.expect(200);
    c.call(Method::GET, "/api/v1/namespaces/default/secrets", &eve, None)
        .await
        .expect(403);
    c.call(Method::GET, "/api/v1/configmaps", &eve, None).await.expect(403);
    c.call(Method::POST, MAPS, &eve, Some(&config_map("a")))
        .await
        .expect(403);
    // Discovery is for everybody with a name; version and health for everybody.
    c.call(Method::GET, "/apis", &eve, None).await.expect(200);
    c.call(Method::GET, "/apis", &As::Anonymous, None).await.expect(403);
    c.call(Method::GET, "/version", &As::Anonymous, None).await.expect(200);
    c.call(Method::GET, "/api/v1/nodes", &As::Token("rubbish".into()), None)
        .await
        .expect(401);
    let sar = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let edit = review("x", &["system:masters"], "delete", "nodes", "");
    assert_eq!(c.post(sar, edit).await.expect(201)["status"]["allowed"], true);
    // A review has no table, as clients probe.
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    for (accept, code) in [(table.to_owned(), 406), (format!("{table}, application/json"), 201)] {
        let headers = [("accept", accept.as_str()), ("content-type", "application/json")];
        let body = review("x", &[], "delete", "nodes", "").to_string().into_bytes();
        let answer = c.raw(Method::POST, sar, &As::Admin, &headers, body).await.expect(code);
        assert_eq!(
            answer["kind"],
            if code == 201 { "SubjectAccessReview" } else { "Status" }
        );
    }
    let none = review("x", &[], "delete", "nodes", "");
    assert_eq!(c.post(sar, none).await.expect(201)["status"]["allowed"], false);
    let who = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let me = c
        .call(
            Method::POST,
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &eve,
            Some(&who),
        )
        .await
        .expect(201);
    assert_eq!(me["status"]["userInfo"]["username"], "eve");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_grants_more_than_they_have() {
    let c = Cluster::start().await;
    c.pki.issue("boss", "boss", &[], false);
    let boss = As::Cert("boss".into());
    let bind = |role: &str, user: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": format!("{user}-{role}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]})
    };
    let path = format!("{RBAC}/namespaces/default/rolebindings");
    c.post(&path, bind("admin", "boss")).await.expect(201);
    c.get(&path).await.expect(200);
    c.call(Method::POST, &path, &boss, Some(&bind("view", "eve")))
        .await
        .expect(201);
    let refused = c
        .call(Method::POST, &path, &boss, Some(&bind("cluster-admin", "boss")))
        .await
        .expect(403);
    assert!(
        refused["message"].as_str().unwrap().contains("not currently held"),
        "{refused}"
    );
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_changes_a_role_holds_its_rules_whatever_is_changed() {
    let c = Cluster::start().await;
    c.pki.issue("clerk", "clerk", &[], false);
    let clerk = As::Cert("clerk".into());
    let roles = format!("{RBAC}/clusterroles");
    // The right to write roles does not contain the one to grant what one does not have.
    let rules = json!([{"verbs": ["get", "create", "patch"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"]},
        {"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]);
    let role = |name: &str, rules: Value| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules});
    c.post(&roles, role("clerk", rules)).await.expect(201);
    let pods = json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]);
    c.post(&roles, role("small", pods.clone())).await.expect(201);
    let mut whole = role("whole", pods);
    whole["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"part": "true"}}]});
    c.post(&roles, whole.clone()).await.expect(201);
    let bind = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "clerk"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "clerk"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "clerk"}]});
    c.post(&format!("{RBAC}/clusterrolebindings"), bind).await.expect(201);
    c.get(&format!("{RBAC}/clusterrolebindings")).await.expect(200);
    let patch = |name: &str, body: Value| {
        let headers = [("content-type", "application/merge-patch+json")];
        let path = format!("{roles}/{name}");
        let (c, clerk) = (&c, &clerk);
        async move {
            c.raw(Method::PATCH, &path, clerk, &headers, body.to_string().into_bytes())
                .await
        }
    };
    let label = json!({"metadata": {"labels": {"part": "true"}}});
    patch("small", label.clone()).await.expect(200);
    // A label gives the rules of a role to whoever is bound to an aggregated one.
    let refused = patch("cluster-admin", label.clone()).await.expect(403);
    assert!(
        refused["message"].as_str().unwrap().contains("not currently held"),
        "{refused}"
    );
    // What collection needs to touch is free.
    patch(
        "cluster-admin",
        json!({"metadata": {"finalizers": ["example.com/hold"]}}),
    )
    .await
    .expect(200);
    patch("cluster-admin", json!({"metadata": {"finalizers": null}}))
        .await
        .expect(200);
    // Who takes the aggregation away or makes one needs the right to everything.
    patch("whole", json!({"aggregationRule": null})).await.expect(403);
    patch("small", json!({"aggregationRule": whole["aggregationRule"]}))
        .await
        .expect(403);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_and_authorities_are_served_without_a_restart() {
    let c = Cluster::start().await;
    let path = |file: &str| c.dir.path().join(file);
    let served = || async {
        let config = Arc::new(crate::tls::client(None, None).unwrap());
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", c.port)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let tls = tokio_rustls::TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .unwrap();
        tls.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = served().await;
    // Somebody of another authority is nobody.
    let elsewhere = path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let other = Pki::new(&elsewhere);
    other.issue("boss", "boss", &["system:masters"], false);
    for end in ["crt", "key"] {
        std::fs::copy(elsewhere.join(format!("boss.{end}")), path(&format!("boss.{end}"))).unwrap();
    }
    let boss = As::Cert("boss".into());
    let identity = (path("boss.crt"), path("boss.key"));
    let refused = || async {
        let config = crate::tls::client(None, Some((&identity.0, &identity.1))).unwrap();
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", c.port)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        match tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
        {
            Err(_) => true,
            // The refusal of a client certificate comes with the first read.
            Ok(mut tls) => tokio::io::AsyncReadExt::read(&mut tls, &mut [0]).await.is_err(),
        }
    };
    assert!(refused().await);
    let both = [path("ca.crt"), elsewhere.join("ca.crt")].map(|f| std::fs::read_to_string(f).unwrap());
    std::fs::write(path("both.crt"), both.concat()).unwrap();
    std::fs::rename(path("both.crt"), path("ca.crt")).unwrap();
    c.call(Method::GET, "/api/v1/nodes", &boss, None).await.expect(200);

    // The key comes a moment after the certificate: until then the pair before is served.
    let key = std::fs::read(path("server.key")).unwrap();
    c.pki.issue("server", "kube-apiserver", &[], true);
    let new = std::fs::read(path("server.key")).unwrap();
    std::fs::write(path("server.key"), key).unwrap();
    assert_eq!(served().await, before);
    std::fs::write(path("server.key"), new).unwrap();
    let after = served().await;
    assert_ne!(after, before);
    c.call(Method::GET, "/api/v1/nodes", &As::Admin, None).await.expect(200);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requested_token_identifies_its_account_until_the_account_is_gone() {
    let c = Cluster::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    c.post(accounts, account).await.expect(201);
    let request = |seconds: i64, audiences: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": seconds, "audiences": audiences}});
    let token_path = format!("{accounts}/robot/token");
    let made = c.post(&token_path, request(3600, json!([]))).await.expect(201);
    let token = made["status"]["token"].as_str().unwrap().to_owned();
    let robot = As::Token(token.clone());
    let who = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let me = c.call(Method::POST, reviews, &robot, Some(&who)).await.expect(201);
    assert_eq!(
        me["status"]["userInfo"]["username"],
        "system:serviceaccount:default:robot"
    );
    c.post(&token_path, request(10, json!([]))).await.expect(422);
    let foreign = c.post(&token_path, request(3600, json!(["vault"]))).await.expect(201);
    let foreign = foreign["status"]["token"].as_str().unwrap().to_owned();
    c.call(Method::POST, reviews, &As::Token(foreign.clone()), Some(&who))
        .await
        .expect(401);
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": foreign, "audiences": ["vault"]}});
    let reviewed = c
        .post("/apis/authentication.k8s.io/v1/tokenreviews", review)
        .await
        .expect(201);
    assert_eq!(reviewed["status"]["authenticated"], true);
    assert_eq!(reviewed["status"]["audiences"], json!(["vault"]));
    let keys = c.get("/openid/v1/jwks").await.expect(200);
    assert_eq!(keys["keys"][0]["alg"], "ES256");
    let tampered = format!("{}x", &token[..token.len() - 4]);
    c.call(Method::POST, reviews, &As::Token(tampered), Some(&who))
        .await
        .expect(401);
    c.delete(&format!("{accounts}/robot"), json!({})).await.expect(200);
    c.call(Method::POST, reviews, &robot, Some(&who)).await.expect(401);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_token_lets_a_node_ask_for_its_certificate() {
    let c = Cluster::start().await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": "bootstrap-token-abcdef"}, "stringData": {
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:nodes", "expiration": "2999-01-01T00:00:00Z"}});
    c.post("/api/v1/namespaces/kube-system/secrets", secret)
        .await
        .expect(201);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "bootstrap"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-bootstrapper"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:bootstrappers:nodes"}]});
    c.post(&format!("{RBAC}/clusterrolebindings"), binding)
        .await
        .expect(201);
    c.get(&format!("{RBAC}/clusterrolebindings")).await.expect(200);
    let node = As::Token("abcdef.0123456789abcdef".into());
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "system:node:n");
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    let pem = params
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap();
    let csr = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "n"}, "spec": {
        "request": base64::engine::general_purpose::STANDARD.encode(pem), "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
        "usages": ["client auth", "digital signature"], "username": "somebody-else"}});
    let csrs = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let mut made = c.call(Method::POST, csrs, &node, Some(&csr)).await.expect(201);
    assert_eq!(made["spec"]["username"], "system:bootstrap:abcdef");
    c.call(Method::GET, "/api/v1/nodes", &node, None).await.expect(403);
    c.call(Method::GET, MAPS, &As::Token("abcdef.0123456789abcdee".into()), None)
        .await
        .expect(401);
    made["status"] = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "Test"}]});
    c.pki.issue("cm", "system:kube-controller-manager", &[], false);
    let manager = As::Cert("cm".into());
    let approved = c
        .call(Method::PUT, &format!("{csrs}/n/approval"), &manager, Some(&made))
        .await
        .expect(200);
    assert_eq!(approved["status"]["conditions"][0]["type"], "Approved");
    let mut other = csr;
    other["metadata"]["name"] = "m".into();
    other["spec"]["signerName"] = "example.com/own".into();
    let mut made = c.post(csrs, other).await.expect(201);
    made["status"] = approved["status"].clone();
    c.call(Method::PUT, &format!("{csrs}/m/approval"), &manager, Some(&made))
        .await
        .expect(403);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_reaches_only_what_its_pods_refer_to() {
    let c = Cluster::start().await;
    c.pki.issue("node", "system:node:n", &["system:nodes"], false);
    let node = As::Cert("node".into());
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    c.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .expect(201);
    c.post(MAPS, config_map("mine")).await.expect(201);
    c.post(MAPS, config_map("other")).await.expect(201);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n",
        "volumes": [{"name": "v", "configMap": {"name": "mine"}}], "containers": [{"name": "a", "image": "x"}]}});
    c.post("/api/v1/namespaces/default/pods", pod).await.expect(201);
    c.get("/api/v1/namespaces/default/pods").await.expect(200);
    let get = async |path: String| c.call(Method::GET, &path, &node, None).await.code;
    assert_eq!(get(format!("{MAPS}/mine")).await, 200);
    assert_eq!(get(format!("{MAPS}/other")).await, 403);
    assert_eq!(get(MAPS.to_owned()).await, 403);
    assert_eq!(get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn".into()).await, 200);
    assert_eq!(get("/api/v1/pods".into()).await, 403);
    let own = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    c.call(Method::POST, "/api/v1/nodes", &node, Some(&own))
        .await
        .expect(201);
    let foreign = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "m"}});
    c.call(Method::POST, "/api/v1/nodes", &node, Some(&foreign))
        .await
        .expect(403);
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    c.call(
        Method::POST,
        "/api/v1/namespaces/default/serviceaccounts/default/token",
        &node,
        Some(&request),
    )
    .await
    .expect(201);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impersonation_needs_permission() {
    let c = Cluster::start().await;
    let headers = [("impersonate-user", "eve"), ("impersonate-group", "devs")];
    c.raw(Method::GET, MAPS, &As::Admin, &headers, vec![]).await.expect(403);
    c.pki.issue("eve", "eve", &[], false);
    let masters = [("impersonate-user", "root"), ("impersonate-group", "system:masters")];
    let refused = c
        .raw(Method::GET, MAPS, &As::Cert("eve".into()), &masters, vec![])
        .await
        .expect(403);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("cannot impersonate resource \"users\""),
        "{refused}"
    );
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_limit_are_asked_to_come_again() {
    let c = Cluster::with(&["--max-mutating-requests-inflight=0"]).await;
    let busy = c.post(MAPS, config_map("a")).await;
    assert_eq!(busy.headers["retry-after"], "1");
    busy.expect(429);
    c.get(MAPS).await.expect(200);
    c.end().await;
}
