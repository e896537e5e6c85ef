//! A workstation that seals what it sends: Oblivious HTTP in pieces, signed with its leaf. What others make of the same documents is in
//! `tests/clients`; this one says what a test wants it to say, true or not.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderMap, Method, Request};
use postern_certs::{Signatory, material};
use postern_sealed::binary::{self, Decoder, Part};
use postern_sealed::chunked::{self, RequestSealer, ResponseOpener};
use postern_sealed::{PublicConfig, SealError, signed};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::client::{Client, Reply, chat_body};
use crate::config::TRUST_DOMAIN;

/// Where sealed requests go.
pub const PLACE: &str = "/.well-known/ohttp-gateway";

/// Seals as one identity.
#[derive(Debug, Clone)]
pub struct Workstation {
    /// Its own connection.
    pub client: Client,
    signatory: Signatory,
}

/// A request before it is sealed.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: String,
    /// Its label; empty: none.
    pub label: String,
    /// What its `Date` says.
    pub date: SystemTime,
    /// Its content.
    pub body: Bytes,
    /// For whom it says that it is.
    pub gateway: String,
    /// Is it signed?
    pub is_signed: bool,
    /// What was signed instead of its label.
    pub signed_label: Option<String>,
    /// What was signed instead of its path.
    pub signed_path: Option<String>,
}

/// A request that is sealed.
#[derive(Debug)]
pub struct Sealed {
    /// What is sent.
    pub bytes: Bytes,
    opener: ResponseOpener,
}

impl Draft {
    /// A chat with one message, now.
    #[must_use]
    pub fn chat(prompt: &str) -> Self {
        Self {
            method: Method::POST,
            path: "/v1/chat/completions".into(),
            label: String::new(),
            date: SystemTime::now(),
            body: chat_body(prompt).to_string().into(),
            gateway: format!("spiffe://{TRUST_DOMAIN}/gateway"),
            is_signed: true,
            signed_label: None,
            signed_path: None,
        }
    }
}

impl Workstation {
    /// With the identity in a folder, over the connections of `client`.
    ///
    /// # Errors
    /// There is none.
    pub fn of(client: &Client, dir: &Path) -> Result<Self> {
        let chain = CertificateDer::pem_file_iter(dir.join("cert.pem"))?.collect::<Result<_, _>>()?;
        let leaf = material::leaf(chain, PrivateKeyDer::from_pem_file(dir.join("key.pem"))?)?;
        Ok(Self { client: client.clone(), signatory: Signatory::new(&leaf)? })
    }

    /// The same over connections of somebody else.
    #[must_use]
    pub fn over(&self, client: &Client) -> Self {
        Self { client: client.clone(), signatory: self.signatory.clone() }
    }

    /// The newest key of the gateway, unverified.
    ///
    /// # Errors
    /// There is none.
    pub async fn key(&self) -> Result<PublicConfig> {
        let listed = self.client.get(PLACE).await?;
        ensure!(listed.status == 200, "{}: {}", listed.status, listed.text());
        Ok(PublicConfig::from_list(&listed.body)?)
    }

    /// Seals a request.
    ///
    /// # Errors
    /// The key is none.
    pub fn seal(&self, key: &PublicConfig, draft: &Draft) -> Result<Sealed> {
        let mut bytes = Vec::new();
        let (mut sealer, opener) = RequestSealer::begin(key, &mut rand::rng(), &mut bytes)?;
        let date = http_date(draft.date)?;
        let mut request = Request::builder().method(&draft.method).uri(&draft.path).header("date", &date);
        request = request.header("content-type", "application/json");
        if !draft.label.is_empty() {
            request = request.header("postern-label", &draft.label);
        }
        if draft.is_signed {
            let sent = signed::Sent {
                encapsulated: opener.encapsulated(),
                key: key.id(),
                gateway: &draft.gateway,
                method: draft.method.as_str(),
                path: draft.signed_path.as_ref().unwrap_or(&draft.path),
                date: &date,
                label: draft.signed_label.as_ref().unwrap_or(&draft.label),
                body: &draft.body,
            };
            let chain: Vec<String> = self.signatory.chain().iter().map(|one| BASE64.encode(one)).collect();
            request = request.header(signed::SENDER, chain.join(","));
            request = request.header(signed::SIGNATURE, BASE64.encode(&self.signatory.sign(&sent.to_bytes())?));
        }
        let mut head = Vec::new();
        binary::put_request(&request.body(())?, "", draft.body.len(), &mut head);
        sealer.push(&head, &mut bytes)?;
        sealer.push(&draft.body, &mut bytes)?;
        sealer.finish(&mut bytes)?;
        Ok(Sealed { bytes: bytes.into(), opener })
    }

    /// Sends bytes as a sealed request. What comes back may be sealed.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, bytes: Bytes) -> Result<Reply> {
        let mut request = self.client.request(Method::POST, PLACE, bytes)?;
        request.headers_mut().insert("content-type", chunked::REQUEST.parse()?);
        self.client.send(request).await
    }

    /// Seals, sends, and opens the answer. What was answered in clear comes as it is.
    ///
    /// # Errors
    /// There is no answer, or it is not authentic.
    pub async fn ask(&self, draft: &Draft) -> Result<Reply> {
        let sealed = self.seal(&self.key().await?, draft)?;
        let reply = self.send(sealed.bytes.clone()).await?;
        sealed.open(reply)
    }
}

impl Sealed {
    /// Opens the answer to it.
    ///
    /// # Errors
    /// It is not authentic.
    pub fn open(self, outer: Reply) -> Result<Reply> {
        if outer.header("content-type") != chunked::RESPONSE {
            return Ok(outer);
        }
        let (mut opener, mut plain) = (self.opener, Vec::new());
        opener.push(&outer.body, &mut plain)?;
        opener.finish(&mut plain)?;
        let (mut decoder, mut status, mut headers, mut body) =
            (Decoder::response(), None, HeaderMap::new(), Vec::new());
        decoder.push(&plain, &mut |part| match part {
            Part::Response(response) => (status, headers) = (Some(response.status()), response.headers().clone()),
            Part::Content(content) => body.extend_from_slice(content),
            Part::Request(_) => {}
        })?;
        decoder.finish()?;
        let status = status.context("no response")?.as_u16();
        Ok(Reply { status, headers, body: body.into(), ..outer })
    }

    /// What opens the answer, for whoever takes it as it comes.
    #[must_use]
    pub fn into_opener(self) -> ResponseOpener {
        self.opener
    }
}

/// Why an answer is not opened, if that is why something failed.
#[must_use]
pub fn refusal(error: &anyhow::Error) -> Option<SealError> {
    error.downcast_ref().copied()
}

fn http_date(date: SystemTime) -> Result<String> {
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    Ok(OffsetDateTime::from(date).format(&format)?)
}
