//! The rules of an offload request, as the names of their breaches.

use crate::eth::ParseError;
use crate::{HEAD_LEN, MAX_FRAME_LEN, MAX_SEGMENTS};

/// Why a request is refused, and the frame with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OffloadError {
    /// No Ethernet frame.
    #[error(transparent)]
    Frame(#[from] ParseError),
    /// Longer than any frame may be.
    #[error(
        "the frame has more than {MAX_FRAME_LEN} bytes: the sender must keep an IP packet within 65,535"
    )]
    TooLong,
    /// The checksum field is beyond the frame.
    #[error("csum_start + csum_offset + 2 reaches beyond the frame: the sender's driver miscounts")]
    CsumBeyondFrame,
    /// The checksum starts in the Ethernet header.
    #[error("csum_start points into the Ethernet header: it must be at or past the network header")]
    CsumBeforeNetwork,
    /// GSO with its checksum not left to do.
    #[error("a GSO frame without NEEDS_CSUM: each segment needs a checksum of its own")]
    GsoWithoutCsum,
    /// ECN with no GSO type beside it.
    #[error("the GSO ECN bit without a GSO type: the sender must name the protocol")]
    EcnWithoutGso,
    /// UDP fragmentation offload.
    #[error(
        "GSO type UDP (3), which was never offered: the sender must use its negotiated features only"
    )]
    GsoUdpFragments,
    /// UDP segmentation offload.
    #[error(
        "GSO type UDP_L4 (5), which was never offered: the sender must use its negotiated features only"
    )]
    GsoUdpSegments,
    /// Another type.
    #[error(
        "a GSO type that no specification names: the sender must use its negotiated features only"
    )]
    GsoUnknownType,
    /// A segment size of zero.
    #[error("a GSO frame with a segment size of 0: the sender must say how to cut it")]
    GsoSizeZero,
    /// A network header that cannot be read.
    #[error("a GSO frame whose IP header is malformed: its lengths must lie within the frame")]
    GsoMalformed,
    /// The type says one IP version, the frame another.
    #[error("the GSO type does not match the frame's IP version")]
    GsoWrongProtocol,
    /// Not TCP.
    #[error("a TCP GSO frame that carries no whole TCP header")]
    GsoNotTcp,
    /// A fragment.
    #[error("a GSO frame that is an IP fragment, which cannot be cut into segments")]
    GsoFragment,
    /// A source-routed packet: its checksum covers an address that is not in the IP header.
    #[error("a GSO frame with an IPv6 routing header that has segments left")]
    GsoRouted,
    /// The checksum field is not TCP's.
    #[error("a GSO frame whose csum_start and csum_offset are not those of its TCP header")]
    GsoCsumElsewhere,
    /// Headers beyond the head.
    #[error("a GSO frame whose headers go beyond its first {HEAD_LEN} bytes")]
    GsoHeadersTooLong,
    /// Too many segments.
    #[error(
        "a GSO frame to be cut into more than {MAX_SEGMENTS} segments: the segment size is too small"
    )]
    GsoTooManySegments,
}

impl OffloadError {
    /// Every variant with a name of its own.
    pub const ALL: [Self; 17] = [
        Self::TooLong,
        Self::CsumBeyondFrame,
        Self::CsumBeforeNetwork,
        Self::GsoWithoutCsum,
        Self::EcnWithoutGso,
        Self::GsoUdpFragments,
        Self::GsoUdpSegments,
        Self::GsoUnknownType,
        Self::GsoSizeZero,
        Self::GsoMalformed,
        Self::GsoWrongProtocol,
        Self::GsoNotTcp,
        Self::GsoFragment,
        Self::GsoRouted,
        Self::GsoCsumElsewhere,
        Self::GsoHeadersTooLong,
        Self::GsoTooManySegments,
    ];

    /// The name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frame(error) => error.name(),
            Self::TooLong => "frame-too-long",
            Self::CsumBeyondFrame => "csum-beyond-frame",
            Self::CsumBeforeNetwork => "csum-before-network",
            Self::GsoWithoutCsum => "gso-without-csum",
            Self::EcnWithoutGso => "gso-ecn-alone",
            Self::GsoUdpFragments => "gso-udp-not-offered",
            Self::GsoUdpSegments => "gso-udp-l4-not-offered",
            Self::GsoUnknownType => "gso-unknown-type",
            Self::GsoSizeZero => "gso-size-zero",
            Self::GsoMalformed => "gso-malformed-ip",
            Self::GsoWrongProtocol => "gso-wrong-protocol",
            Self::GsoNotTcp => "gso-not-tcp",
            Self::GsoFragment => "gso-fragment",
            Self::GsoRouted => "gso-routing-header",
            Self::GsoCsumElsewhere => "gso-csum-elsewhere",
            Self::GsoHeadersTooLong => "gso-headers-too-long",
            Self::GsoTooManySegments => "gso-too-many-segments",
        }
    }
}
