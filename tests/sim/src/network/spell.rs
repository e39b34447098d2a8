//! Packets in words, for the text of a run.

use gannet_proto::control::{
    Drain, Drained, Grant, Notice, Retired, Revoke, SessionClose, SessionClosed, SessionOpen,
    SessionReady, TargetHello, TargetStats, TargetStatsReply, TargetWelcome,
};
use gannet_proto::data::{Arrival, DataHello, DataWelcome};
use gannet_proto::handshake::{Hello, Refusal};
use gannet_proto::identity::SetIdentity;
use gannet_proto::operations::{
    Cancel, ConnectTarget, DeclareOpen, DirectoryReply, EntryReply, HostHello, HostWelcome,
    InodeRequest, IoReply, NameRequest, Read, ReclaimComplete, Register, SetAttributes, StatFs,
    StatFsReply, Stats, StatsReply, TargetReply, Unregister, Write,
};
use gannet_proto::packet::{Frame, Frames, Message};
use gannet_proto::xattr::{XattrReply, XattrRequest};

/// The messages of a packet.
pub(super) fn spell(packet: &[u8]) -> String {
    let frames = Frames::new(packet).map(|frame| match frame {
        Ok(frame) => spell_frame(&frame),
        Err(error) => error.to_string(),
    });
    frames
        .collect::<Vec<_>>()
        .join("; ")
        .replace("U16(", "(")
        .replace("U32(", "(")
        .replace("U64(", "(")
}

fn spell_frame(frame: &Frame<'_>) -> String {
    macro_rules! spelled {
        ($($message:ty),* $(,)?) => {
            match frame.kind {
                $(<$message>::KIND => match frame.read::<$message>() {
                    Ok((message, _)) => format!("{message:?}"),
                    Err(error) => error.to_string(),
                },)*
                kind => format!("kind {kind:#x}"),
            }
        };
    }
    spelled!(
        Hello,
        Refusal,
        HostHello,
        HostWelcome,
        SetIdentity,
        DeclareOpen,
        ReclaimComplete,
        XattrRequest,
        XattrReply,
        NameRequest,
        InodeRequest,
        SetAttributes,
        Read,
        Write,
        ConnectTarget,
        StatFs,
        Stats,
        Register,
        Unregister,
        Cancel,
        EntryReply,
        DirectoryReply,
        IoReply,
        TargetReply,
        StatFsReply,
        StatsReply,
        TargetHello,
        TargetWelcome,
        Drain,
        Drained,
        SessionOpen,
        SessionReady,
        SessionClose,
        SessionClosed,
        Grant,
        Notice,
        Retired,
        Revoke,
        TargetStats,
        TargetStatsReply,
        DataHello,
        DataWelcome,
        Arrival,
    )
}
