//! Blobs from a store into a registry: taken over from another repository, in one piece, or in several.
//!
//! ```text
//! there already? → mount from a repository that may have it → POST (an upload) → PUT it whole
//!                                                                └→ PATCH piece by piece → PUT (the end)
//! ```
//! A piece that fails is sent again from where the registry says it has got to; an upload the registry has forgotten
//! begins anew. A registry that refuses pieces gets the blob whole.

use oci::{BlobStore, Descriptor};
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};

use super::content::Content;
use super::{Again, Call, Failure, Meter, Repository};
use crate::error::Error;

const MIN_CHUNK: &str = "oci-chunk-min-length";
/// What registries answer to the end of an upload.
const DONE: [StatusCode; 3] = [StatusCode::CREATED, StatusCode::NO_CONTENT, StatusCode::OK];

/// How a blob came into a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It was there.
    Present,
    /// The registry took it over from another repository.
    Mounted,
    /// Its bytes were sent.
    Uploaded,
}

/// An upload the registry has begun.
struct Upload {
    location: Url,
    /// How many bytes it has.
    offset: u64,
    /// The smallest piece it takes, but for the last.
    smallest: u64,
}

impl Repository {
    /// Brings a blob of the store into the repository; `mount_from` names repositories of the same registry that may
    /// have it.
    ///
    /// # Errors
    /// When the store's blob is missing or damaged, or the registry can't be reached or refuses.
    pub(crate) async fn push_blob(
        &self,
        blobs: &BlobStore,
        blob: &Descriptor,
        mount_from: &[String],
        meter: &Meter,
    ) -> Result<Sent, Error> {
        if self.has_blob(blob).await? {
            meter.add(blob.size);
            return Ok(Sent::Present);
        }
        let mut upload = None;
        for from in mount_from {
            match self.mount(blob, from).await? {
                None => {
                    meter.add(blob.size);
                    return Ok(Sent::Mounted);
                }
                Some(refused) => {
                    if let Some(unused) = upload.replace(refused) {
                        self.cancel(unused).await;
                    }
                }
            }
        }
        if !blobs.has(&blob.digest, blob.size) {
            blobs.verify(&blob.digest, blob.size)?;
        }
        let sent = self.upload(blobs, blob, upload, meter).await;
        if sent.is_err() {
            // The registry refuses damaged content without knowing whose fault it is.
            let (blobs, blob) = (blobs.clone(), blob.clone());
            let verified = tokio::task::spawn_blocking(move || blobs.verify(&blob.digest, blob.size)).await;
            if let Ok(Err(damaged)) = verified {
                return Err(damaged.into());
            }
        }
        sent.map(|()| Sent::Uploaded)
    }

    /// Whether the repository has the blob.
    async fn has_blob(&self, blob: &Descriptor) -> Result<bool, Error> {
        let below = format!("blobs/{}", blob.digest);
        let call = self.call(
            Method::HEAD,
            &below,
            format!("look for the blob {} in {{}}", blob.digest),
        )?;
        let response = self.request(&call, &[StatusCode::OK, StatusCode::NOT_FOUND]).await?;
        Ok(response.status() == StatusCode::OK)
    }

    fn upload_call(&self, method: Method, url: Option<&Url>, blob: &Descriptor) -> Result<Call<'_>, Error> {
        let mut call = self.call(
            method,
            "blobs/uploads/",
            format!("push the blob {} to {{}}", blob.digest),
        )?;
        if let Some(url) = url {
            call.url = url.clone();
        }
        Ok(call)
    }

    /// Asks the registry to take the blob over from another of its repositories; gives the upload it offers instead.
    async fn mount(&self, blob: &Descriptor, from: &str) -> Result<Option<Upload>, Error> {
        let mut call = self.upload_call(Method::POST, None, blob)?;
        call.url
            .query_pairs_mut()
            .append_pair("mount", blob.digest.as_str())
            .append_pair("from", from);
        call.scopes.push(format!("repository:{from}:pull"));
        let good = [StatusCode::CREATED, StatusCode::ACCEPTED];
        let mut attempts = self.remote.retry.start();
        let response = loop {
            let answer = match self.remote.send(&call).await {
                // We may not read the other repository: that's no reason not to send the blob.
                Ok(response) if response.status().is_client_error() => return self.begin(blob).await.map(Some),
                Ok(response) => call.accept(response, &good).await,
                Err(failure) => Err(failure),
            };
            match answer {
                Ok(response) => break response,
                Err(failure) => attempts.wait(failure).await?,
            }
        };
        match response.status() {
            StatusCode::CREATED => Ok(None),
            _ => Ok(Some(begun(&call, &response)?)),
        }
    }

    async fn begin(&self, blob: &Descriptor) -> Result<Upload, Error> {
        let mut call = self.upload_call(Method::POST, None, blob)?;
        call.content = Content::Bytes(bytes::Bytes::new());
        let response = self.request(&call, &[StatusCode::ACCEPTED]).await?;
        begun(&call, &response)
    }

    /// Tells the registry that an upload won't be used. It would find out by itself some day.
    async fn cancel(&self, upload: Upload) {
        let call = self.call(Method::DELETE, "blobs/uploads/", "cancel an upload to {}");
        if let Ok(mut call) = call {
            call.url = upload.location;
            let _ = self.remote.send(&call).await;
        }
    }

    async fn upload(
        &self,
        blobs: &BlobStore,
        blob: &Descriptor,
        mut upload: Option<Upload>,
        meter: &Meter,
    ) -> Result<(), Error> {
        let mut in_pieces = blob.size > self.remote.chunk;
        let mut attempts = self.remote.retry.start();
        loop {
            let mut current = match upload.take() {
                Some(upload) => upload,
                None => self.begin(blob).await?,
            };
            let before = current.offset;
            let result = match in_pieces {
                true => self.pieces(blobs, blob, &mut current, meter).await,
                false => self.whole(blobs, blob, &current, meter).await,
            };
            let Err(failure) = result else { return Ok(()) };
            if failure.again == Again::No && in_pieces && current.offset == 0 {
                // It takes no pieces.
                in_pieces = false;
                continue;
            }
            if current.offset > before {
                attempts.progressed();
            }
            attempts.wait(failure).await?;
            // The last answer may have got lost, not the bytes.
            if self.has_blob(blob).await? {
                return Ok(());
            }
            let reached = if in_pieces {
                self.reached(blob, &current).await
            } else {
                None
            };
            meter.take_back(current.offset);
            meter.add(reached.as_ref().map_or(0, |upload| upload.offset));
            upload = reached;
        }
    }

    async fn whole(&self, blobs: &BlobStore, blob: &Descriptor, upload: &Upload, meter: &Meter) -> Result<(), Failure> {
        let mut call = self.upload_call(Method::PUT, Some(&upload.location), blob)?;
        call.url.query_pairs_mut().append_pair("digest", blob.digest.as_str());
        let kind = HeaderValue::from_static("application/octet-stream");
        call.headers.insert(CONTENT_TYPE, kind);
        call.content = Content::Blob {
            blobs,
            digest: &blob.digest,
            offset: 0,
            size: blob.size,
            meter,
        };
        let response = self.remote.send(&call).await?;
        call.accept(response, &DONE).await.map(|_| ())
    }

    async fn pieces(
        &self,
        blobs: &BlobStore,
        blob: &Descriptor,
        upload: &mut Upload,
        meter: &Meter,
    ) -> Result<(), Failure> {
        let chunk = self.remote.chunk.max(upload.smallest);
        while upload.offset < blob.size {
            let size = chunk.min(blob.size - upload.offset);
            let mut call = self.upload_call(Method::PATCH, Some(&upload.location), blob)?;
            let range = format!("{}-{}", upload.offset, upload.offset + size - 1);
            let range = HeaderValue::from_str(&range).map_err(|_| call.error("no range".to_string()))?;
            call.headers.insert(CONTENT_RANGE, range);
            let kind = HeaderValue::from_static("application/octet-stream");
            call.headers.insert(CONTENT_TYPE, kind);
            call.content = Content::Blob {
                blobs,
                digest: &blob.digest,
                offset: upload.offset,
                size,
                meter,
            };
            let response = self.remote.send(&call).await?;
            let good = [StatusCode::ACCEPTED, StatusCode::NO_CONTENT, StatusCode::CREATED];
            let response = call.accept(response, &good).await?;
            upload.location = location(&call, &response).unwrap_or_else(|| upload.location.clone());
            upload.offset += size;
        }
        let mut call = self.upload_call(Method::PUT, Some(&upload.location), blob)?;
        call.url.query_pairs_mut().append_pair("digest", blob.digest.as_str());
        call.content = Content::Bytes(bytes::Bytes::new());
        let response = self.remote.send(&call).await?;
        call.accept(response, &DONE).await.map(|_| ())
    }

    /// How far the registry says an upload has got; none if it has forgotten it or can't tell.
    async fn reached(&self, blob: &Descriptor, upload: &Upload) -> Option<Upload> {
        let call = self.upload_call(Method::GET, Some(&upload.location), blob).ok()?;
        let response = self.remote.send(&call).await.ok()?;
        if !response.status().is_success() {
            return None;
        }
        let range = response.headers().get(RANGE)?.to_str().ok()?;
        let offset = range_end(range)?;
        (offset <= blob.size).then(|| Upload {
            location: location(&call, &response).unwrap_or_else(|| upload.location.clone()),
            offset,
            smallest: upload.smallest,
        })
    }
}

/// How many bytes `0-<last>` stands for. `0-0` is what some registries say of nothing, so it counts as unknown.
fn range_end(range: &str) -> Option<u64> {
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let last: u64 = range.strip_prefix("0-")?.parse().ok()?;
    (last > 0).then(|| last.saturating_add(1))
}

fn begun(call: &Call<'_>, response: &Response) -> Result<Upload, Error> {
    let smallest = response.headers().get(MIN_CHUNK).and_then(|size| size.to_str().ok());
    let location = location(call, response);
    Ok(Upload {
        location: location.ok_or_else(|| call.error("it doesn't say where to send it".to_string()))?,
        offset: 0,
        smallest: smallest.and_then(|size| size.parse().ok()).unwrap_or(0),
    })
}

/// Where to go on. Never from HTTPS to plain HTTP.
fn location(call: &Call<'_>, response: &Response) -> Option<Url> {
    let text = response.headers().get(LOCATION)?.to_str().ok()?;
    let url = response.url().join(text).ok()?;
    let downgraded = call.url.scheme() == "https" && url.scheme() != "https";
    (!downgraded).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_upload_is_read_as_the_specification_writes_it() {
        for (range, expected) in [
            ("0-9", Some(10)),
            ("bytes=0-9", Some(10)),
            ("0-0", None),
            ("5-9", None),
            ("", None),
            ("0-18446744073709551615", Some(u64::MAX)),
        ] {
            assert_eq!(range_end(range), expected, "{range}");
        }
    }
}
