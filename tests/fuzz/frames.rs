//! The host protocol: what arrives on a stream that anything may have written to.

use futures::executor::block_on;
use host::frame::{self, Kind, MAX_DATA, MAX_HEAD};
use host::proto::{Answer, Request};

/// A stream, read until it ends or is refused. What was read gives the same bytes when it is written again.
pub(crate) fn run(data: &[u8]) {
    let mut reader = data;
    let mut again = Vec::new();
    while let Ok(Some(frame)) = block_on(frame::read(&mut reader)) {
        let limit = match frame.kind {
            Kind::Head => MAX_HEAD,
            Kind::Data => MAX_DATA,
            Kind::End | Kind::Cancel => 0,
        };
        assert!(frame.body.len() <= limit);
        block_on(frame::write(&mut again, &frame)).expect("a vector takes everything");
        assert_eq!(again, data[..data.len() - reader.len()]);
        if frame.kind == Kind::Head {
            if let Ok(request) = serde_json::from_slice::<Request>(&frame.body) {
                same(&request, |bytes| serde_json::from_slice::<Request>(bytes).ok());
            }
            if let Ok(answer) = serde_json::from_slice::<Answer>(&frame.body) {
                same(&answer, |bytes| serde_json::from_slice::<Answer>(bytes).ok());
            }
        }
    }
}

/// What was understood is understood in the same way once more.
fn same<T: serde::Serialize>(value: &T, read: impl Fn(&[u8]) -> Option<T>) {
    let bytes = serde_json::to_vec(value).expect("it was JSON");
    let again = read(&bytes).expect("our own words");
    assert_eq!(serde_json::to_vec(&again).expect("it was JSON"), bytes);
}
