//! From a request's bytes to a response's bytes: headers, EDNS, sizes. Pure, except that names outside of the zone are left to
//! the caller.

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::Record,
};

use crate::{answer::Answer, zone::Zone};

/// The largest UDP response that is sent, in bytes: what passes every network unfragmented.
const MAX_UDP: u16 = 1232;
/// What a client without EDNS can take over UDP, in bytes.
const MIN_UDP: u16 = 512;

/// What is to be done with a request.
#[derive(Debug)]
pub enum Outcome {
    /// Send this.
    Respond(Message),
    /// Ask others; `answers` (an alias) come before theirs, and `question` is what to ask them.
    Forward {
        /// The response, ready but for what others answer.
        response: Message,
        /// What to ask, as a message.
        question: Message,
    },
    /// Not even an error can be sent.
    Ignore,
}

/// Decides what to do with a request. `turn` rotates the answers, so that clients that take the first one are spread.
pub fn handle(zone: &Zone, request: &[u8], turn: usize) -> Outcome {
    let request = match Message::from_vec(request) {
        Ok(request) => request,
        Err(_) => return malformed(request),
    };
    if request.metadata.message_type != MessageType::Query {
        return Outcome::Ignore;
    }
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.queries.clone_from(&request.queries);
    if let Some(theirs) = &request.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(MAX_UDP);
        ours.set_version(0);
        response.edns = Some(ours);
        if theirs.version() > 0 {
            return failed(response, ResponseCode::BADVERS);
        }
    }
    if request.metadata.op_code != OpCode::Query {
        return failed(response, ResponseCode::NotImp);
    }
    let [question] = request.queries.as_slice() else {
        return failed(response, ResponseCode::FormErr);
    };
    match zone.answer(question) {
        Answer::Final {
            code,
            mut answers,
            authorities,
            additionals,
        } => {
            rotate(&mut answers, turn);
            response.metadata.authoritative = true;
            response.metadata.response_code = code;
            response.answers = answers;
            response.authorities = authorities;
            response.additionals = additionals;
            Outcome::Respond(response)
        }
        Answer::Elsewhere { answers, target } => {
            response.answers = answers;
            let mut question = request.clone();
            if let Some(query) = question.queries.first_mut() {
                query.set_name(target);
            }
            Outcome::Forward { response, question }
        }
        Answer::NotOurs => Outcome::Forward {
            response,
            question: request,
        },
    }
}

/// Finishes a forwarded request with what others said.
pub fn merge(mut response: Message, theirs: &[u8]) -> Message {
    let Ok(theirs) = Message::from_vec(theirs) else {
        response.metadata.response_code = ResponseCode::ServFail;
        return response;
    };
    response.metadata.response_code = theirs.metadata.response_code;
    response.metadata.truncation = theirs.metadata.truncation;
    response.answers.extend(theirs.answers);
    response.authorities.extend(theirs.authorities);
    response.additionals.extend(theirs.additionals);
    response
}

/// A response's bytes; over UDP at most as many as the client takes, else a hint to come back over TCP.
pub fn encode(response: &Message, request_payload: Option<u16>, over_tcp: bool) -> Option<Vec<u8>> {
    let bytes = response.to_vec().ok()?;
    let limit = if over_tcp {
        usize::from(u16::MAX)
    } else {
        usize::from(request_payload.unwrap_or(MIN_UDP).clamp(MIN_UDP, MAX_UDP))
    };
    if bytes.len() <= limit {
        return Some(bytes);
    }
    let mut short = response.clone();
    short.additionals.clear();
    if let Some(bytes) = short.to_vec().ok().filter(|bytes| bytes.len() <= limit) {
        return Some(bytes);
    }
    short.answers.clear();
    short.authorities.clear();
    short.metadata.truncation = true;
    short.to_vec().ok()
}

/// The largest UDP response a request says its client takes, in bytes.
pub fn payload(request: &[u8]) -> Option<u16> {
    Message::from_vec(request).ok()?.edns.map(|edns| edns.max_payload())
}

fn failed(mut response: Message, code: ResponseCode) -> Outcome {
    if let Some(edns) = &mut response.edns {
        edns.set_rcode_high((u16::from(code) >> 4) as u8);
    }
    response.metadata.response_code = code;
    Outcome::Respond(response)
}

fn malformed(request: &[u8]) -> Outcome {
    let (Some([high, low]), Some(flags)) = (request.get(..2), request.get(2)) else {
        return Outcome::Ignore;
    };
    // Responses are never answered, or two servers could go on for ever.
    if request.len() < 12 || flags & 0x80 != 0 {
        return Outcome::Ignore;
    }
    let id = u16::from_be_bytes([*high, *low]);
    Outcome::Respond(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr))
}

/// Turns the addresses at the end of the answers; aliases before them stay where they are.
fn rotate(answers: &mut [Record], turn: usize) {
    let first = answers
        .iter()
        .position(|record| record.record_type().is_ip_addr())
        .unwrap_or(answers.len());
    if let Some(addresses) = answers.get_mut(first..).filter(|addresses| addresses.len() > 1) {
        let length = addresses.len();
        addresses.rotate_left(turn % length);
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
