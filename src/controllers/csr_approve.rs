//! Approves what nodes ask for: their first client certificate (by bootstrap token), its renewal, and their serving
//! certificate. Who may ask for client certificates is decided by the API server's authorizer.

use std::{sync::Arc, time::Duration};

use component::{ApiErrorExt, Error, ObjectKey, Requeue};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use kube::Api;
use kube::api::PostParams;
use tracing::{debug, info};

use crate::context::{Context, known};
use crate::csr::{KUBELET_CLIENT, KUBELET_SERVING, Request, check, foreign_name, is_pending, parse, serving_node};
use crate::meta::{name, now, since};

/// How long one who may not have a certificate is left alone, at first and at most.
const FIRST_LOOK: Duration = Duration::from_millis(500);
const LAST_LOOK: Duration = Duration::from_secs(60);

/// Starts the approver.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("csr-approver");
    let add = Arc::clone(&queue);
    ctx.caches.requests.on_change(move |c| {
        if !c.is_deleted() && is_pending(c.latest()) {
            add.add(ObjectKey::of(&**c.latest()));
        }
    });
    // A serving certificate waits for the Node object and its addresses.
    let (add, on) = (Arc::clone(&queue), Arc::clone(ctx));
    ctx.caches.nodes.on_change(move |c| {
        let addresses = |n: &k8s_openapi::api::core::v1::Node| n.status.as_ref().and_then(|s| s.addresses.clone());
        if c.is_deleted() || c.old().is_some_and(|o| addresses(o) == addresses(c.latest())) {
            return;
        }
        let user = format!("system:node:{}", name(&c.latest().metadata));
        for csr in on.caches.requests.all() {
            if is_pending(&csr) && csr.spec.username.as_ref() == Some(&user) {
                add.add(ObjectKey::of(&*csr));
            }
        }
    });
    ctx.work(
        known!(ctx, requests, nodes),
        queue,
        2,
        Arc::clone(ctx),
        |ctx, key| async move { reconcile(&ctx, &key).await },
    )
}

async fn reconcile(ctx: &Context, key: &ObjectKey) -> Result<Requeue, Error> {
    let Some(csr) = ctx.caches.requests.get_key(key).filter(|c| is_pending(c)) else {
        return Ok(Requeue::Done);
    };
    if csr.spec.signer_name != KUBELET_CLIENT && csr.spec.signer_name != KUBELET_SERVING {
        return Ok(Requeue::Done);
    }
    let request = match parse(&csr.spec.request.0) {
        Ok(request) => request,
        Err(why) => {
            debug!(csr = key.name, why, "left alone");
            return Ok(Requeue::Done);
        }
    };
    // What the signer would refuse is not approved either: people shall see it as pending.
    if let Err(why) = check(
        &csr.spec.signer_name,
        &request,
        csr.spec.usages.as_deref().unwrap_or_default(),
    ) {
        debug!(csr = key.name, why, "left alone");
        return Ok(Requeue::Done);
    }
    if csr.spec.signer_name == KUBELET_SERVING {
        // What it waits for is seen.
        return match serving(ctx, &csr, &request) {
            Some(reason) => approve(ctx, &csr, reason).await,
            None => Ok(Requeue::Done),
        };
    }
    match client(ctx, &csr, &request).await? {
        Some(reason) => approve(ctx, &csr, reason).await,
        None => Ok(again(&csr, Timestamp::now())),
    }
}

/// When one who may not have it is looked at again. What allows it is no object that is watched here, and is often written, or believed by the
/// authorizer, a moment after the first nodes of a cluster ask: nobody would ask for them once more.
fn again(csr: &CertificateSigningRequest, now: Timestamp) -> Requeue {
    let asked = csr.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    Requeue::After((since(asked, now) / 10).clamp(FIRST_LOOK, LAST_LOOK))
}

/// Whether the one who asks may have a node's client certificate, by the authorizer's word.
async fn client(
    ctx: &Context,
    csr: &CertificateSigningRequest,
    request: &Request,
) -> Result<Option<&'static str>, Error> {
    let own = csr.spec.username.as_ref() == Some(&request.common_name);
    if own && may(ctx, csr, "selfnodeclient").await? {
        return Ok(Some(
            "Auto approving self kubelet client certificate after SubjectAccessReview.",
        ));
    }
    if may(ctx, csr, "nodeclient").await? {
        return Ok(Some(
            "Auto approving kubelet client certificate after SubjectAccessReview.",
        ));
    }
    debug!(
        csr = name(&csr.metadata),
        "the asker may not have a node client certificate"
    );
    Ok(None)
}

async fn may(ctx: &Context, csr: &CertificateSigningRequest, subresource: &str) -> Result<bool, Error> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: csr.spec.username.clone(),
            uid: csr.spec.uid.clone(),
            groups: csr.spec.groups.clone(),
            extra: csr.spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(subresource.into()),
                verb: Some("create".into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = Api::<SubjectAccessReview>::all(ctx.client.clone())
        .create(&PostParams::default(), &review)
        .await?;
    Ok(answer.status.is_some_and(|s| s.allowed))
}

fn serving(ctx: &Context, csr: &CertificateSigningRequest, request: &Request) -> Option<&'static str> {
    let node_name = serving_node(csr, request)?;
    let Some(node) = ctx.caches.nodes.get("", node_name) else {
        debug!(
            csr = name(&csr.metadata),
            node = node_name,
            "waits for the node to register"
        );
        return None;
    };
    if let Some(foreign) = foreign_name(request, &node) {
        info!(
            csr = name(&csr.metadata),
            node = node_name,
            name = foreign,
            "asks for a name that is no address of the node; not approved"
        );
        return None;
    }
    Some("Auto approving kubelet serving certificate: requested by the node itself for its own addresses.")
}

async fn approve(ctx: &Context, csr: &CertificateSigningRequest, message: &str) -> Result<Requeue, Error> {
    let mut approved = csr.clone();
    approved
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default()
        .push(CertificateSigningRequestCondition {
            type_: "Approved".into(),
            status: "True".into(),
            reason: Some("AutoApproved".into()),
            message: Some(message.into()),
            last_update_time: Some(now()),
            last_transition_time: Some(now()),
        });
    let api: Api<CertificateSigningRequest> = Api::all(ctx.client.clone());
    match api
        .replace_subresource("approval", name(&csr.metadata), &PostParams::default(), &approved)
        .await
    {
        Ok(_) => {
            info!(csr = name(&csr.metadata), "approved");
            Ok(Requeue::Done)
        }
        Err(e) if e.is_not_found() => Ok(Requeue::Done),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn one_who_may_not_have_it_yet_is_looked_at_again_and_ever_less_often() {
        let asked = Timestamp::UNIX_EPOCH;
        let mut csr = CertificateSigningRequest::default();
        csr.metadata.creation_timestamp = Some(Time(asked));
        for (age, pause) in [(0, 0.5), (5, 0.5), (60, 6.0), (86_400, 60.0)] {
            let now = asked + Duration::from_secs(age);
            assert_eq!(
                again(&csr, now),
                Requeue::After(Duration::from_secs_f64(pause)),
                "{age} s"
            );
        }
    }
}
