//! What must hold of requests and frames, whatever bytes they are made of.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::server;
use super::wire::{Asked, ClientFrame, ServerFrame, receive, receive_data};

/// A request that is understood is the same after it was sent once more; frames and the bytes between them end.
pub fn protocol(data: &[u8]) {
    let _ = server::parse(data);
    if let Ok(asked) = serde_json::from_slice::<Asked>(data) {
        let line = serde_json::to_vec(&asked).expect("what was JSON");
        let again: Asked = serde_json::from_slice(&line).expect("what was sent");
        assert_eq!((again.outfs, again.place, again.request), (asked.outfs, asked.place, asked.request));
    }
    stream::<ClientFrame>(data, |frame| match frame {
        ClientFrame::Data { bytes } => Some(*bytes),
        ClientFrame::End => None,
    });
    stream::<ServerFrame>(data, |frame| match frame {
        ServerFrame::Data { bytes } => Some(*bytes),
        _ => None,
    });
}

/// Reads frames and their bytes to the end.
fn stream<T: Serialize + DeserializeOwned>(mut input: &[u8], follow: impl Fn(&T) -> Option<usize>) {
    while let Ok(Some(frame)) = receive::<T>(&mut input) {
        let sent = serde_json::to_vec(&frame).expect("what was JSON");
        let again: T = serde_json::from_slice(&sent).expect("what was sent");
        assert_eq!(serde_json::to_vec(&again).expect("what was JSON"), sent);
        let Some(bytes) = follow(&frame) else { continue };
        match receive_data(&mut input, bytes) {
            Ok(data) => assert_eq!(data.len(), bytes),
            Err(_) => return,
        }
    }
}
