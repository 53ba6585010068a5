use std::net::IpAddr;

use hickory_proto::{
    op::Query,
    rr::{Name, RecordType},
};
use proptest::prelude::*;

use super::*;
use crate::zone::{Endpoint, Service};

fn zone(endpoints: usize) -> Zone {
    let ends = (0..endpoints).map(|i| Endpoint {
        label: format!("pod-{i}"),
        address: IpAddr::from([100, 64, (i >> 8) as u8, i as u8]),
        ports: Default::default(),
    });
    let service = Service {
        endpoints: ends.collect(),
        ..Service::default()
    };
    Zone {
        domain: vec!["cluster".to_owned(), "local".to_owned()],
        services: [(("default".to_owned(), "many".to_owned()), service)].into(),
        ..Zone::default()
    }
}

fn request(name: &str, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if let Some(payload) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn respond(endpoints: usize, request: &[u8], over_tcp: bool) -> Message {
    let Outcome::Respond(response) = handle(&zone(endpoints), request, 0) else {
        panic!("no response")
    };
    let bytes = encode(&response, payload(request), over_tcp).unwrap();
    let limit = if over_tcp {
        65535
    } else {
        usize::from(payload(request).unwrap_or(512).max(512))
    };
    assert!(bytes.len() <= limit, "{} > {limit}", bytes.len());
    Message::from_vec(&bytes).unwrap()
}

const MANY: &str = "many.default.svc.cluster.local.";

#[test]
fn a_response_repeats_the_question_and_its_id() {
    let response = respond(2, &request(MANY, None), false);
    assert_eq!(
        (response.metadata.id, response.metadata.recursion_desired),
        (4711, true)
    );
    assert!(response.metadata.authoritative && response.edns.is_none());
    assert_eq!((response.queries.len(), response.answers.len()), (1, 2));
}

#[test]
fn what_is_too_large_for_udp_is_truncated_and_whole_over_tcp() {
    let small = respond(100, &request(MANY, None), false);
    assert!(small.metadata.truncation && small.answers.is_empty());
    assert_eq!(respond(60, &request(MANY, Some(1232)), false).answers.len(), 60);
    let whole = respond(1000, &request(MANY, None), true);
    assert!(!whole.metadata.truncation, "{} answers", whole.answers.len());
    assert_eq!(whole.answers.len(), 1000);
    assert!(respond(1000, &request(MANY, Some(65535)), false).metadata.truncation);
}

#[test]
fn answers_take_turns() {
    let zone = zone(3);
    let first = |turn| {
        let Outcome::Respond(response) = handle(&zone, &request(MANY, None), turn) else {
            panic!()
        };
        response.answers[0].data.to_string()
    };
    assert_eq!(
        [first(0), first(1), first(2), first(3)],
        ["100.64.0.0", "100.64.0.1", "100.64.0.2", "100.64.0.0"]
    );
}

#[test]
fn requests_we_do_not_serve_get_the_right_code() {
    let mut update = Message::new(1, MessageType::Query, OpCode::Update);
    update.add_query(Query::query(Name::root(), RecordType::SOA));
    assert_eq!(
        respond(0, &update.to_vec().unwrap(), false).metadata.response_code,
        ResponseCode::NotImp
    );
    let none = Message::new(1, MessageType::Query, OpCode::Query).to_vec().unwrap();
    assert_eq!(respond(0, &none, false).metadata.response_code, ResponseCode::FormErr);
    let mut cut = request(MANY, None);
    cut.truncate(20);
    assert_eq!(respond(0, &cut, false).metadata.response_code, ResponseCode::FormErr);
    let mut version = Message::from_vec(&request(MANY, Some(1232))).unwrap();
    if let Some(edns) = &mut version.edns {
        edns.set_version(1);
    }
    // 16 is both BADVERS and BADSIG; only the number travels.
    let code = respond(0, &version.to_vec().unwrap(), false).metadata.response_code;
    assert_eq!(u16::from(code), u16::from(ResponseCode::BADVERS));
    let response = Message::response(1, OpCode::Query).to_vec().unwrap();
    assert!(matches!(handle(&zone(0), &response, 0), Outcome::Ignore));
}

#[test]
fn an_external_alias_is_asked_for_and_merged_after_the_alias() {
    let mut zone = zone(0);
    let external = Some(Name::from_ascii("example.com.").unwrap());
    let alias = Service {
        external,
        ..Service::default()
    };
    zone.services.insert(("default".to_owned(), "out".to_owned()), alias);
    let outcome = handle(&zone, &request("out.default.svc.cluster.local.", None), 0);
    let Outcome::Forward { response, question } = outcome else {
        panic!()
    };
    assert_eq!(question.queries[0].name().to_ascii(), "example.com.");
    let mut theirs = Message::response(question.metadata.id, OpCode::Query);
    theirs.queries.clone_from(&question.queries);
    theirs.add_answer(Record::from_rdata(
        Name::from_ascii("example.com.").unwrap(),
        60,
        hickory_proto::rr::RData::A(hickory_proto::rr::rdata::A::new(1, 2, 3, 4)),
    ));
    let merged = merge(response, &theirs.to_vec().unwrap());
    assert_eq!(merged.queries[0].name().to_ascii(), "out.default.svc.cluster.local.");
    let kinds: Vec<_> = merged.answers.iter().map(Record::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Outcome::Respond(response) = handle(&zone(1), &bytes, 0) {
            prop_assert!(encode(&response, payload(&bytes), false).is_some());
        }
    }
}
