//! HTTP messages in binary form: what is sealed. Source: RFC 9292.
//!
//! Read as they come, cut anywhere, since a response is used while it comes; the `bhttp` crate reads whole messages, with any number of fields. Requests
//! are written with their length, responses without one.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};

use crate::SealError;
use crate::frames::{length, put_length};

/// The most bytes in front of the content, and behind it.
pub const MAX_HEAD: usize = 32 << 10;

const KNOWN_REQUEST: u8 = 0;
const KNOWN_RESPONSE: u8 = 1;
const INDETERMINATE_REQUEST: u8 = 2;
const INDETERMINATE_RESPONSE: u8 = 3;

/// A part of a message that is there by now.
#[derive(Debug)]
pub enum Part<'a> {
    /// What is asked.
    Request(Request<()>),
    /// How it is answered; what is said before that (1xx) is passed over.
    Response(Response<()>),
    /// Of the content, the next bytes.
    Content(&'a [u8]),
}

/// Reads one message.
#[derive(Debug)]
pub struct Decoder {
    is_request: bool,
    at: At,
    form: Form,
    /// Of what is not all there: the head, a length, the trailers.
    begun: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Known,
    Indeterminate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    /// In front of all content.
    First,
    /// Behind a piece of it.
    Next,
    /// So many bytes of content are missing.
    Content(u64),
    Trailers,
    Padding,
}

/// Why something cannot be read from the bytes that are there.
#[derive(Debug)]
enum Stop {
    Short,
    Malformed,
}

type Read<T> = Result<T, Stop>;

impl Decoder {
    /// Reads a request.
    #[must_use]
    pub fn request() -> Self {
        Self { is_request: true, at: At::Head, form: Form::Known, begun: Vec::new() }
    }

    /// Reads a response.
    #[must_use]
    pub fn response() -> Self {
        Self { is_request: false, ..Self::request() }
    }

    /// Takes the next bytes, and calls `each` with every part that is there by now.
    ///
    /// # Errors
    /// [`SealError::Message`]: it is no message, or what is in front of its content is larger than [`MAX_HEAD`].
    pub fn push(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(Part<'_>)) -> Result<(), SealError> {
        while !bytes.is_empty() {
            match self.at {
                At::Head => {
                    let is_request = self.is_request;
                    let Some((form, head)) = self.gather(&mut bytes, |all| head(all, is_request))? else { break };
                    (self.form, self.at) = (form, At::First);
                    each(head);
                }
                At::First | At::Next => {
                    let Some(length) = self.gather(&mut bytes, varint)? else { break };
                    self.at = if length == 0 { At::Trailers } else { At::Content(length) };
                }
                At::Content(missing) => {
                    let now = usize::try_from(missing).unwrap_or(usize::MAX).min(bytes.len());
                    let (content, rest) = bytes.split_at_checked(now).unwrap_or((bytes, &[]));
                    each(Part::Content(content));
                    bytes = rest;
                    self.at = match (missing - now as u64, self.form) {
                        (0, Form::Known) => At::Trailers,
                        (0, Form::Indeterminate) => At::Next,
                        (missing, _) => At::Content(missing),
                    };
                }
                At::Trailers => {
                    let form = self.form;
                    // They say nothing to us.
                    let Some(_) = self.gather(&mut bytes, |all| fields(all, form))? else { break };
                    self.at = At::Padding;
                }
                At::Padding => {
                    return if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(SealError::Message) };
                }
            }
        }
        Ok(())
    }

    /// No more comes. What is empty at the end may have been left out (RFC 9292, 3.8).
    ///
    /// # Errors
    /// [`SealError::Cut`]: something is missing.
    pub fn finish(self) -> Result<(), SealError> {
        let may_end = matches!(self.at, At::First | At::Trailers | At::Padding);
        if may_end && self.begun.is_empty() { Ok(()) } else { Err(SealError::Cut) }
    }

    /// What `read` makes of all that is there, from `bytes` too; `None`: it takes more.
    fn gather<T>(
        &mut self,
        bytes: &mut &[u8],
        read: impl FnOnce(&mut &[u8]) -> Read<T>,
    ) -> Result<Option<T>, SealError> {
        // Mostly all of it is there.
        if self.begun.is_empty() {
            let mut left = *bytes;
            match read(&mut left) {
                Ok(read) => {
                    *bytes = left;
                    return Ok(Some(read));
                }
                Err(Stop::Short) if bytes.len() <= MAX_HEAD => {
                    self.begun.extend_from_slice(bytes);
                    *bytes = &[];
                    return Ok(None);
                }
                Err(_) => return Err(SealError::Message),
            }
        }
        let before = self.begun.len();
        let more = bytes.get(..(MAX_HEAD + 1).saturating_sub(before)).unwrap_or(bytes);
        self.begun.extend_from_slice(more);
        let mut left = self.begun.as_slice();
        match read(&mut left) {
            Ok(read) => {
                let used = self.begun.len() - left.len() - before;
                *bytes = bytes.get(used..).unwrap_or_default();
                self.begun.clear();
                Ok(Some(read))
            }
            Err(Stop::Short) if self.begun.len() <= MAX_HEAD => {
                *bytes = &[];
                Ok(None)
            }
            Err(_) => Err(SealError::Message),
        }
    }
}

fn head(bytes: &mut &[u8], is_request: bool) -> Read<(Form, Part<'static>)> {
    let (first, rest) = bytes.split_first().ok_or(Stop::Short)?;
    *bytes = rest;
    let form = match (*first, is_request) {
        (KNOWN_REQUEST, true) | (KNOWN_RESPONSE, false) => Form::Known,
        (INDETERMINATE_REQUEST, true) | (INDETERMINATE_RESPONSE, false) => Form::Indeterminate,
        _ => return Err(Stop::Malformed),
    };
    if is_request {
        let method = Method::from_bytes(string(bytes)?).map_err(|_| Stop::Malformed)?;
        // Where it goes is said by whoever it was sealed for.
        let (_scheme, _authority) = (string(bytes)?, string(bytes)?);
        let path = string(bytes)?;
        if path.first() != Some(&b'/') {
            return Err(Stop::Malformed);
        }
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::try_from(path).map_err(|_| Stop::Malformed)?;
        *request.headers_mut() = fields(bytes, form)?;
        return Ok((form, Part::Request(request)));
    }
    loop {
        let status = u16::try_from(varint(bytes)?).map_err(|_| Stop::Malformed)?;
        let status = StatusCode::from_u16(status).map_err(|_| Stop::Malformed)?;
        let headers = fields(bytes, form)?;
        if !status.is_informational() {
            let mut response = Response::new(());
            (*response.status_mut(), *response.headers_mut()) = (status, headers);
            return Ok((form, Part::Response(response)));
        }
    }
}

fn fields(bytes: &mut &[u8], form: Form) -> Read<HeaderMap> {
    let mut headers = HeaderMap::new();
    let mut put = |name: &[u8], value: &[u8]| {
        // In small letters: RFC 9292, 3.6.
        let name = HeaderName::from_lowercase(name).map_err(|_| Stop::Malformed)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| Stop::Malformed)?;
        headers.try_append(name, value).map(drop).map_err(|_| Stop::Malformed)
    };
    match form {
        Form::Known => {
            let mut section = string(bytes)?;
            while !section.is_empty() {
                let within = |stop| if matches!(stop, Stop::Short) { Stop::Malformed } else { stop };
                let name = string(&mut section).map_err(within)?;
                put(name, string(&mut section).map_err(within)?)?;
            }
        }
        Form::Indeterminate => loop {
            match string(bytes)? {
                [] => break,
                name => put(name, string(bytes)?)?,
            }
        },
    }
    Ok(headers)
}

/// A string with its length in front of it.
fn string<'a>(bytes: &mut &'a [u8]) -> Read<&'a [u8]> {
    let length = usize::try_from(varint(bytes)?).ok().filter(|length| *length <= MAX_HEAD).ok_or(Stop::Malformed)?;
    let (string, rest) = bytes.split_at_checked(length).ok_or(Stop::Short)?;
    *bytes = rest;
    Ok(string)
}

fn varint(bytes: &mut &[u8]) -> Read<u64> {
    let first = bytes.first().ok_or(Stop::Short)?;
    let (written, rest) = bytes.split_at_checked(1 << (first >> 6)).ok_or(Stop::Short)?;
    *bytes = rest;
    length(written).ok_or(Stop::Short)
}

/// Writes a request whose content of `content` bytes follows, and nothing behind that.
pub fn put_request(request: &Request<()>, authority: &str, content: usize, out: &mut Vec<u8>) {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    out.push(KNOWN_REQUEST);
    for part in [request.method().as_str(), "https", authority, path] {
        put_string(part.as_bytes(), out);
    }
    put_known_fields(request.headers(), out);
    put_length(content, out);
}

/// Writes a response as a whole.
pub fn put_response(status: StatusCode, headers: &HeaderMap, content: &[u8], out: &mut Vec<u8>) {
    out.push(KNOWN_RESPONSE);
    put_length(status.as_u16().into(), out);
    put_known_fields(headers, out);
    put_string(content, out);
}

/// Writes the beginning of a response whose content follows in pieces.
pub fn begin_response(status: StatusCode, headers: &HeaderMap, out: &mut Vec<u8>) {
    out.push(INDETERMINATE_RESPONSE);
    put_length(status.as_u16().into(), out);
    put_fields(headers, out);
    put_length(0, out);
}

/// Writes a piece of its content. An empty one would be its end, and is left out.
pub fn put_content(content: &[u8], out: &mut Vec<u8>) {
    if !content.is_empty() {
        put_string(content, out);
    }
}

/// Writes its end: no more content, and no trailers.
pub fn end_response(out: &mut Vec<u8>) {
    put_length(0, out);
    put_length(0, out);
}

fn put_known_fields(headers: &HeaderMap, out: &mut Vec<u8>) {
    let mut section = Vec::with_capacity(512);
    put_fields(headers, &mut section);
    put_string(&section, out);
}

fn put_fields(headers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in headers {
        put_string(name.as_str().as_bytes(), out);
        put_string(value.as_bytes(), out);
    }
}

fn put_string(string: &[u8], out: &mut Vec<u8>) {
    put_length(string.len(), out);
    out.extend_from_slice(string);
}

#[cfg(test)]
mod tests {
    use bhttp::{Message, Mode};
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Seen {
        line: String,
        headers: HeaderMap,
        content: Vec<u8>,
    }

    /// What is read of `bytes` that come in pieces of `cut`.
    fn read(mut decoder: Decoder, bytes: &[u8], cut: usize) -> Result<Seen, SealError> {
        let mut seen = Seen::default();
        for piece in bytes.chunks(cut) {
            decoder.push(piece, &mut |part| match part {
                Part::Request(request) => {
                    seen.line = format!("{} {}", request.method(), request.uri());
                    seen.headers = request.headers().clone();
                }
                Part::Response(response) => {
                    seen.line = response.status().as_str().to_owned();
                    seen.headers = response.headers().clone();
                }
                Part::Content(content) => seen.content.extend_from_slice(content),
            })?;
        }
        decoder.finish().map(|()| seen)
    }

    fn headers(pairs: &[(String, String)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    proptest! {
        #[test]
        fn what_the_bhttp_crate_writes_is_read_however_it_is_cut(
            fields in prop::collection::vec(("x-[a-z]{1,20}", "[ -~]{0,80}"), 0..8),
            content in prop::collection::vec(any::<u8>(), 0..200),
            cut in 1_usize..80,
            padding in 0_usize..4,
            informational in any::<bool>(),
        ) {
            for mode in [Mode::KnownLength, Mode::IndeterminateLength] {
                let mut request =
                    Message::request(b"POST".into(), b"https".into(), b"a.example".into(), b"/v1/chat?x=1".into());
                let mut response = Message::response(bhttp::StatusCode::try_from(200_u16).unwrap());
                for (name, value) in &fields {
                    request.put_header(name.as_bytes(), value.trim().as_bytes());
                    response.put_header(name.as_bytes(), value.trim().as_bytes());
                }
                request.write_content(&content);
                response.write_content(&content);
                request.put_trailer(&b"x-last"[..], &b"1"[..]);
                let trimmed: Vec<_> = fields.iter().map(|(name, value)| (name.clone(), value.trim().to_owned())).collect();
                for (message, decoder, line) in
                    [(&request, Decoder::request(), "POST /v1/chat?x=1"), (&response, Decoder::response(), "200")]
                {
                    let mut bytes = Vec::new();
                    message.write_bhttp(mode, &mut bytes).unwrap();
                    if informational && line == "200" {
                        // 103, without fields.
                        bytes.splice(1..1, [64, 103, 0]);
                    }
                    bytes.resize(bytes.len() + padding, 0);
                    let seen = read(decoder, &bytes, cut).unwrap();
                    prop_assert_eq!(&seen, &Seen { line: line.into(), headers: headers(&trimmed), content: content.clone() });
                }
            }
        }

        #[test]
        fn what_is_written_is_read_by_the_bhttp_crate_and_by_us(
            fields in prop::collection::vec(("x-[a-z]{1,20}", "[!-~]{0,80}"), 0..8),
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 0..5),
            cut in 1_usize..80,
        ) {
            let (map, content) = (headers(&fields), pieces.concat());
            let mut whole = Vec::new();
            let mut request = Request::builder().method("PUT").uri("/v1/models?a").body(()).unwrap();
            *request.headers_mut() = map.clone();
            put_request(&request, "gateway", content.len(), &mut whole);
            whole.extend_from_slice(&content);
            let mut known = Vec::new();
            put_response(StatusCode::NOT_FOUND, &map, &content, &mut known);
            let mut streamed = Vec::new();
            begin_response(StatusCode::NOT_FOUND, &map, &mut streamed);
            pieces.iter().for_each(|piece| put_content(piece, &mut streamed));
            end_response(&mut streamed);
            let written = [
                (whole, Decoder::request(), "PUT /v1/models?a"),
                (known, Decoder::response(), "404"),
                (streamed, Decoder::response(), "404"),
            ];
            for (bytes, decoder, line) in written {
                let theirs = Message::read_bhttp(&mut std::io::Cursor::new(&bytes[..])).unwrap();
                prop_assert_eq!(theirs.content(), &content[..]);
                prop_assert_eq!(theirs.header().fields().len(), map.len());
                let cut_off = &bytes[..bytes.len() - 1];
                let seen = read(decoder, &bytes, cut).unwrap();
                prop_assert_eq!(seen, Seen { line: line.into(), headers: map.clone(), content: content.clone() });
                let again = if line.starts_with("PUT") { Decoder::request() } else { Decoder::response() };
                // Without content, the last length may be left out.
                prop_assert!(content.is_empty() || line == "404" || read(again, cut_off, cut) == Err(SealError::Cut));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1_usize..40) {
            let whole = read(Decoder::request(), &bytes, 1000);
            prop_assert_eq!(whole, read(Decoder::request(), &bytes, cut));
            prop_assert_eq!(read(Decoder::response(), &bytes, 1000), read(Decoder::response(), &bytes, cut));
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let field = |name: &[u8], value: &[u8]| {
            let mut section = Vec::new();
            put_string(name, &mut section);
            put_string(value, &mut section);
            let mut bytes = vec![KNOWN_REQUEST];
            [&b"GET"[..], b"https", b"", b"/"].iter().for_each(|part| put_string(part, &mut bytes));
            put_string(&section, &mut bytes);
            read(Decoder::request(), &bytes, 7)
        };
        assert!(field(b"postern-label", b"internal").is_ok());
        assert_eq!(field(b"Postern-Label", b"internal"), Err(SealError::Message));
        assert_eq!(field(b"postern label", b"internal"), Err(SealError::Message));
        assert_eq!(field(b"postern-label", b"internal\r\nx: y"), Err(SealError::Message));
        // A head without end, however it is cut.
        let endless = [&[INDETERMINATE_RESPONSE, 0x40, 0xc8][..], &[1, b'x', 1, b'y'].repeat(9000)].concat();
        for cut in [1 << 20, 4000, 1000] {
            assert_eq!(read(Decoder::response(), &endless, cut), Err(SealError::Message), "{cut}");
        }
        // Longer than there is memory.
        assert_eq!(
            read(Decoder::request(), &[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 9),
            Err(SealError::Message)
        );
    }
}
