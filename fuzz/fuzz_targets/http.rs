//! What a client sends to the metrics' endpoint, all of it at once. Nothing is pinned, so that there are no
//! metrics to be had.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use netbond::{metrics::Endpoint, pins::Pins};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut runtime = Builder::new_current_thread();
    runtime.enable_time().build().expect("a runtime")
});
static ENDPOINT: LazyLock<Endpoint> = LazyLock::new(|| Endpoint::new(Pins::new("/nonexistent")));

/// More than any test sends, and than any answer has.
const SPACE: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let answer = RUNTIME.block_on(async {
        let (mut client, server) = duplex(SPACE);
        client.write_all(data).await.expect("there is space");
        client.shutdown().await.expect("a pipe is open");
        let answered = timeout(Duration::from_secs(5), ENDPOINT.converse(server));
        answered
            .await
            .expect("a client that is done is soon answered");
        let mut answer = Vec::new();
        client
            .read_to_end(&mut answer)
            .await
            .expect("a pipe is open");
        answer
    });
    if answer.is_empty() {
        return;
    }
    assert!(answer.len() < 4096);
    let answer = String::from_utf8(answer).expect("text");
    let status = answer.split(' ').nth(1);
    assert!(answer.starts_with("HTTP/1."), "{answer:?}");
    assert!(
        matches!(status, Some("400" | "404" | "405" | "414" | "431" | "500")),
        "{answer:?}"
    );
    // The client's words are not repeated, and one request has one answer.
    assert_eq!(answer.matches("HTTP/1.").count(), 1, "{answer:?}");
});
