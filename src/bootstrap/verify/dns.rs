//! One question to a name server over TCP (RFC 1035 section 4), asked through a stream that a host opened.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const ID: u16 = 0x1a57;
const TYPE_A: [u8; 4] = [0, 1, 0, 1];

/// A question for the A records of `name`, with its length before it.
fn question(name: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(name.len() + 20);
    message.extend(ID.to_be_bytes());
    // Recursion desired; one question.
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(TYPE_A);
    let mut framed = u16::try_from(message.len()).unwrap_or(0).to_be_bytes().to_vec();
    framed.extend(message);
    framed
}

/// The first A record of an answer.
fn answer(message: &[u8], question_length: usize) -> Result<std::net::Ipv4Addr, String> {
    let word = |at: usize| message.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    if word(0) != Some(ID) {
        return Err("the answer is not to our question".to_owned());
    }
    match message.get(3).map(|flags| flags & 15) {
        Some(0) => {}
        Some(3) => return Err("no such name".to_owned()),
        code => return Err(format!("the name server answers with code {}", code.unwrap_or(255))),
    }
    // Records follow the question; an owner name is a pointer or labels.
    let mut at = question_length;
    for _ in 0..word(6).unwrap_or(0) {
        at = skip_name(message, at).ok_or("the answer is cut short")?;
        let (kind, length) = (word(at), usize::from(word(at + 8).ok_or("the answer is cut short")?));
        let data = message
            .get(at + 10..at + 10 + length)
            .ok_or("the answer is cut short")?;
        if kind == Some(1)
            && let Ok(octets) = <[u8; 4]>::try_from(data)
        {
            return Ok(octets.into());
        }
        at += 10 + length;
    }
    Err("the answer has no address".to_owned())
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

/// Asks for the address of `name`.
pub(super) async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    name: &str,
) -> Result<std::net::Ipv4Addr, String> {
    let question = question(name);
    let lost = |e: std::io::Error| format!("the connection to the name server was lost: {e}");
    stream.write_all(&question).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let length = stream.read_u16().await.map_err(lost)?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await.map_err(lost)?;
    answer(&message, question.len() - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_read_past_other_records() {
        let (near, mut far) = tokio::io::duplex(1024);
        let server = tokio::spawn(async move {
            let length = usize::from(far.read_u16().await.unwrap());
            let mut message = vec![0; length];
            far.read_exact(&mut message).await.unwrap();
            message[2] |= 0x80;
            message[7] = 2;
            // A CNAME first, then the address, both by pointer to the question's name.
            message.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 5, 0, 2, 0xc0, 12]);
            message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 96, 0, 1]);
            far.write_u16(u16::try_from(message.len()).unwrap()).await.unwrap();
            far.write_all(&message).await.unwrap();
        });
        let address = ask(near, "kubernetes.default.svc.cluster.local").await.unwrap();
        assert_eq!(address.to_string(), "10.96.0.1");
        server.await.unwrap();
    }

    #[test]
    fn refusals_and_rubbish_are_told_apart() {
        let id = ID.to_be_bytes();
        assert_eq!(
            answer(&[id[0], id[1], 0x81, 3, 0, 1, 0, 0], 8).unwrap_err(),
            "no such name"
        );
        assert!(answer(&[0, 0, 0, 0], 4).unwrap_err().contains("not to our question"));
        assert!(answer(&[id[0], id[1], 0x81, 0, 0, 1, 0, 1], 8).is_err());
    }
}
