//! Why a request is refused, what is done about it, and how each outcome is counted.
//!
//! One enum is the counter's index, the metric's label and the CLI's word; one table maps it to an action.

use crate::abi::AnswerKind;

macro_rules! labelled {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All values, in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word for it in metrics, JSON and tables; stable.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// The value with this index, if there is one.
            #[must_use]
            pub const fn from_index(index: u8) -> Option<Self> {
                $(if index == Self::$variant as u8 { return Some(Self::$variant); })+
                None
            }
        }
    };
}

labelled! {
    /// Why a request, or a segment that cannot be judged, is refused.
    Reason {
        /// No `X-API-Key` field.
        Unkeyed = "unkeyed",
        /// A well-formed key that is not registered.
        UnknownKey = "unknown_key",
        /// A registered key that an operator has switched off.
        KeyDisabled = "key_disabled",
        /// A registered key outside its validity.
        KeyExpired = "key_expired",
        /// A limit that applies is used up.
        OverLimit = "over_limit",
        /// Not the one strict reading of RFC 9112; see [`Malformation`] for the kind.
        Malformed = "malformed",
        /// A head, or its number of fields, beyond the service's bound.
        HeadTooLarge = "head_too_large",
        /// `CONNECT` or an `Upgrade` field.
        Upgrade = "upgrade",
        /// Bytes of a connection whose earlier bytes were not seen.
        MidStream = "mid_stream",
        /// The client closed its side inside a request head.
        FinInHead = "fin_in_head",
        /// Urgent data, or data in a SYN or without ACK: the stack edits such a stream, or does not take it.
        Unorderly = "unorderly",
        /// An IP fragment.
        Fragment = "fragment",
        /// Headers that could not be parsed to their end.
        Unparsable = "unparsable",
        /// No room to follow another connection.
        FlowTableFull = "flow_table_full",
        /// Other bytes at a place that was judged, leading elsewhere; or a head whose path was begun under rules that hold no
        /// longer.
        Conflict = "conflict",
        /// A request head that was not finished in time.
        SlowHead = "slow_head",
        /// A request target beyond the service's bound.
        TargetTooLong = "target_too_long",
        /// A declared body beyond the service's bound.
        BodyTooLarge = "body_too_large",
        /// A path that servers read in more than one way, where routes have rules.
        Path = "path",
        /// A bad key of a source that has sent too many of them.
        Guessing = "guessing",
        /// Too many distinct keys of one source.
        KeyRotation = "key_rotation",
        /// Too many distinct sources of one key.
        KeyShared = "key_shared",
        /// No room to count another subject of a limit.
        BucketsFull = "buckets_full",
        /// A trusted proxy's connection that does not begin with a well-formed header of the PROXY protocol.
        ProxyHeader = "proxy_header",
        /// A connection beyond those that its source or its principal may have at once.
        Connections = "connections",
        /// A host that no service on its port is for.
        Misdirected = "misdirected",
    }
}

impl Reason {
    /// Whether a request that is refused for this has tried a key that is not good.
    #[must_use]
    #[inline(always)]
    pub const fn is_guess(self) -> bool {
        matches!(self, Self::UnknownKey | Self::KeyDisabled | Self::KeyExpired)
    }

    /// How a request that is refused for this can be answered; `None` where it is not known what would be answered.
    #[must_use]
    pub const fn answer(self) -> Option<AnswerKind> {
        match self {
            Self::Unkeyed | Self::UnknownKey | Self::KeyDisabled | Self::KeyExpired => Some(AnswerKind::Unauthorized),
            Self::OverLimit => Some(AnswerKind::TooManyRequests),
            Self::Guessing | Self::KeyRotation | Self::KeyShared | Self::Connections => Some(AnswerKind::AbnormalUsage),
            Self::Malformed | Self::Path => Some(AnswerKind::BadRequest),
            Self::HeadTooLarge => Some(AnswerKind::FieldsTooLarge),
            Self::TargetTooLong => Some(AnswerKind::UriTooLong),
            Self::BodyTooLarge => Some(AnswerKind::ContentTooLarge),
            Self::Upgrade => Some(AnswerKind::Forbidden),
            Self::Misdirected => Some(AnswerKind::Misdirected),
            Self::MidStream
            | Self::FinInHead
            | Self::Unorderly
            | Self::Fragment
            | Self::Unparsable
            | Self::FlowTableFull
            | Self::Conflict
            | Self::SlowHead
            | Self::BucketsFull
            | Self::ProxyHeader => None,
        }
    }
}

labelled! {
    /// What was wrong with a [`Reason::Malformed`] request.
    Malformation {
        /// TLS, an HTTP/2 preface, or other bytes that begin no HTTP/1 request.
        NotHttp = "not_http",
        /// The method is not a token.
        Method = "method",
        /// The request target is empty or holds a byte outside 0x21–0x7E.
        Target = "target",
        /// The version is not exactly `HTTP/1.0` or `HTTP/1.1`.
        Version = "version",
        /// A CR or LF that is not part of a CRLF.
        LineEnding = "line_ending",
        /// A control byte in a field value.
        ControlByte = "control_byte",
        /// A field line that begins with white space.
        ObsFold = "obs_fold",
        /// An empty field name, or a byte in it that is not a token's.
        FieldName = "field_name",
        /// A name that equals a field that matters once `_` is read as `-`.
        AliasedName = "aliased_name",
        /// A second field of a kind that may stand once.
        Duplicate = "duplicate",
        /// The key is not 8–128 visible ASCII bytes.
        KeyValue = "key_value",
        /// `Content-Length` is not 1–19 digits.
        ContentLength = "content_length",
        /// `Transfer-Encoding` is not exactly `chunked`, or stands in HTTP/1.0.
        TransferEncoding = "transfer_encoding",
        /// Both `Content-Length` and `Transfer-Encoding`.
        Framing = "framing",
        /// A chunk size, its line or its end.
        Chunk = "chunk",
        /// A trailer field.
        Trailer = "trailer",
        /// `Expect` is not exactly `100-continue`, or stands in HTTP/1.0 or in a request without a body.
        Expect = "expect",
        /// Both connection options `close` and `keep-alive`.
        Connection = "connection",
        /// Bytes behind a request that said `Connection: close`.
        AfterClose = "after_close",
        /// The client's id is not 1–128 visible ASCII bytes.
        ClientId = "client_id",
        /// Where services are told apart by host: it is missing in HTTP/1.1, is not one that all servers read alike, or is
        /// another than that of the target.
        Host = "host",
    }
}

labelled! {
    /// Things that happen to packets, counted besides the requests. A service that only observes counts the same, and
    /// passes them all.
    Event {
        /// A request that was passed and charged.
        Allowed = "allowed",
        /// A segment beyond the next expected byte, dropped so that TCP sends it again in order.
        OutOfOrder = "out_of_order",
        /// A segment whose bytes the receiver already has, or of a body of which bytes before it are missing, passed.
        OldData = "old_data",
        /// A segment judged before that the receiver has not accepted yet, and that says the same: passed.
        Retransmitted = "retransmitted",
        /// A segment judged before that the receiver has not accepted yet, but how is not remembered: dropped.
        Forgotten = "forgotten",
        /// A segment of a connection that another CPU was judging, dropped.
        Contended = "contended",
        /// A segment of a connection refused earlier.
        AfterRefusal = "after_refusal",
        /// A segment cut behind its last good request; the rest is judged when it is sent again.
        Cut = "cut",
        /// A segment turned into a RST.
        Reset = "reset",
        /// A packet dropped.
        Dropped = "dropped",
        /// An answer sent in the server's place.
        Answered = "answered",
        /// An answer sent once more, since its client had not got it.
        AnsweredAgain = "answered_again",
        /// A SYN of a source under a penalty, dropped.
        Penalised = "penalised",
        /// A penalty that has begun.
        Penalty = "penalty",
        /// A RST sent to the client of a request that could not be answered.
        ResetClient = "reset_client",
        /// A request that passed uncharged, since its path is exempt for its source.
        Exempt = "exempt",
        /// A request without a key that is measured by the limits of such.
        Unkeyed = "unkeyed",
        /// A request with a key that is not registered, measured by the limits of such.
        Unregistered = "unregistered",
        /// Such a request whose key shares its bucket with all others that there was no room for.
        UnregisteredOverflow = "unregistered_overflow",
        /// A request whose source shares its buckets with all others that there was no room for.
        SourceOverflow = "source_overflow",
        /// A source whose bad keys are refused unread from now on.
        GuessPenalty = "guess_penalty",
        /// A key beyond those that one source may have.
        KeyRotation = "key_rotation",
        /// A source beyond those that one key may have.
        KeyShared = "key_shared",
        /// A request with a query parameter that is named like a key; none is taken from there.
        KeyInUrl = "key_in_url",
        /// A request without a key that has what is often one where none is taken from: a query parameter, or a field.
        CarrierMismatch = "carrier_mismatch",
        /// An acknowledgment that would have completed a handshake before a request was judged, dropped; not of a service
        /// that only observes.
        Deferred = "deferred",
        /// A connection that there was no room to count: its requests are refused where connections are bounded.
        ConnectionsFull = "connections_full",
        /// A limit that a request was measured by together with all others of its kind that came when there was no room for
        /// more named subjects.
        BucketOverflow = "bucket_overflow",
    }
}

labelled! {
    /// What is done with a refused request.
    Action {
        /// Drop the segment, silently.
        Drop = "drop",
        /// End the connection: a RST for either side.
        Reset = "reset",
        /// Answer in the server's place, and end the server's side of the connection; where a client could take the
        /// answer for that of an earlier request, or none is defined for the reason, as [`Action::Reset`].
        Answer = "answer",
    }
}

/// Where a thing is counted in the map of totals; see [`crate::abi::TOTALS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Refused for a reason.
    Refused(Reason),
    /// Would have been refused, but the service observes.
    WouldRefuse(Reason),
    /// Malformed in this way, refused or not.
    Malformed(Malformation),
    /// Something else that happened.
    Event(Event),
}

impl Count {
    /// Index in the map of totals, below [`crate::abi::TOTALS`].
    #[must_use]
    pub const fn index(self) -> u32 {
        match self {
            Self::Refused(reason) => reason as u32,
            Self::WouldRefuse(reason) => 32 + reason as u32,
            Self::Malformed(kind) => 64 + kind as u32,
            Self::Event(event) => 96 + event as u32,
        }
    }
}
