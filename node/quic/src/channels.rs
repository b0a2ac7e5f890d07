//! Several channels of bytes on one stream: how a control node and a node carry `exec` and `attach`. The channels are
//! those that Kubernetes clients use in WebSocket messages (`v5.channel.k8s.io`).
//!
//! A frame is the channel's number, the length of what follows in four bytes, and the bytes.

use bytes::{BufMut, Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest frame: clients send pieces of 32 KiB, a guest writes 64 KiB at most.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// What a frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Channel {
    /// From the client to the program.
    Stdin = 0,
    /// From the program.
    Stdout = 1,
    /// From the program.
    Stderr = 2,
    /// At the end: a `Status` that tells how it went.
    Error = 3,
    /// The size of the client's terminal, as JSON.
    Resize = 4,
    /// Ends the channel whose number is its one byte.
    Close = 255,
}

impl Channel {
    /// The channel of a number.
    pub fn of(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Error,
            4 => Self::Resize,
            255 => Self::Close,
            _ => return None,
        })
    }
}

/// The next frame; `None` at the end of the stream. Frames of unknown channels are left out.
pub async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(Channel, Bytes)>> {
    loop {
        let number = match reader.read_u8().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            number => number?,
        };
        let length = reader.read_u32().await? as usize;
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).await?;
        if let Some(channel) = Channel::of(number) {
            return Ok(Some((channel, bytes.into())));
        }
    }
}

/// Writes a frame; what is longer than one goes into several.
pub async fn write_frame(writer: &mut (impl AsyncWrite + Unpin), channel: Channel, bytes: &[u8]) -> io::Result<()> {
    let mut out = BytesMut::with_capacity(bytes.len() + 5);
    let mut rest = bytes;
    loop {
        let (now, more) = rest.split_at(rest.len().min(FRAME_BYTES_MAX));
        out.put_u8(channel as u8);
        out.put_u32(u32::try_from(now.len()).expect("a frame has a bounded length"));
        out.put_slice(now);
        rest = more;
        if rest.is_empty() {
            break;
        }
    }
    writer.write_all(&out).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_as_they_went() {
        let mut sent = Vec::new();
        let long = vec![7; FRAME_BYTES_MAX + 1];
        for (channel, bytes) in [(Channel::Stdin, &b"in"[..]), (Channel::Close, &[0]), (Channel::Stdout, &long)] {
            write_frame(&mut sent, channel, bytes).await.unwrap();
        }
        // A channel that nobody knows, and an empty frame.
        sent.extend([9, 0, 0, 0, 1, 0]);
        write_frame(&mut sent, Channel::Error, b"").await.unwrap();
        let mut reader = sent.as_slice();
        let mut got = Vec::new();
        while let Some((channel, bytes)) = read_frame(&mut reader).await.unwrap() {
            got.push((channel, bytes.len()));
        }
        let (full, rest) = (FRAME_BYTES_MAX, 1);
        let expected = [
            (Channel::Stdin, 2),
            (Channel::Close, 1),
            (Channel::Stdout, full),
            (Channel::Stdout, rest),
            (Channel::Error, 0),
        ];
        assert_eq!(got, expected);
    }

    #[tokio::test]
    async fn what_is_cut_off_or_too_long_is_an_error() {
        for bytes in [&[1, 0, 0][..], &[1, 0, 0, 0, 2, 0], &[1, 255, 255, 255, 255]] {
            let mut reader = bytes;
            assert!(read_frame(&mut reader).await.is_err(), "{bytes:?}");
        }
    }
}
