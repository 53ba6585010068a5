//! Create and update: decode, note who owns what, prepare, default, admit, validate, store.

use api::managed::{self, Writing};
use api::{Kind, metadata, strategy, validation};
use http::Request;
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::Value;

use super::body::{self, WriteOptions};
use super::format::Format;
use super::lookup::CacheLookup;
use super::{Context, csr, render, restrict};
use crate::admission::{self, Attributes, Operation, service};
use crate::app::App;
use crate::authn::User;
use crate::error::{ApiError, FieldError, Result};
use crate::model;
use crate::objects::{self, Modify, Outcome};
use crate::server::Response;

/// Attempts to find a free name for `generateName`.
const NAME_TRIES: usize = 8;

/// Who writes: a user, or the server itself, to whom restrictions of users don't apply.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// The server.
    app: &'a App,
    /// The user; `None` for the server.
    user: Option<&'a User>,
    /// Name of the manager that comes to own what is written.
    manager: &'a str,
}

/// The manager of what the server itself writes.
const SERVER: &str = "kube-apiserver";

/// How the managers of a new version come about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owners {
    /// The writer owns what it changes.
    Noted,
    /// They are in the new version already: it was applied.
    Applied,
    /// There are none, as the object would be too large for the store with them.
    Forgotten,
}

/// Answers a create.
///
/// # Errors
/// The refusal.
pub async fn create(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let format = Format::negotiate(request.headers(), &c.info.query, false)?;
    let options = WriteOptions::parse(c)?;
    let (mut value, warnings) =
        body::object(Some(kind), (kind.group, kind.version, kind.kind), &options, request).await?;
    body::place(c, kind, &mut value)?;
    let writer = Writer::of(c, &options.manager);
    let stored = writer.create(kind, value, options.dry).await?;
    let response = render::object(kind, format, 201, &render::in_version(kind, stored))?;
    Ok(body::warn(response, &warnings))
}

/// Answers an update of an object or its status.
///
/// # Errors
/// The refusal.
pub async fn update(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let format = Format::negotiate(request.headers(), &c.info.query, false)?;
    let options = WriteOptions::parse(c)?;
    let (mut value, warnings) =
        body::object(Some(kind), (kind.group, kind.version, kind.kind), &options, request).await?;
    body::place(c, kind, &mut value)?;
    let writer = Writer::of(c, &options.manager);
    let target = Target::of(c, kind);
    let (code, stored) = match writer.update(&target, options.dry, |_| Ok(value.clone())).await {
        Ok(outcome) => (200, outcome.into_value()),
        Err(e) if e.code == 404 && target.subresource.is_none() && strategy::allows_create_on_update(kind) => {
            c.app.authz.require(&c.user, &c.action("create"))?;
            (201, writer.create(kind, value.clone(), options.dry).await?)
        }
        Err(e) => return Err(e),
    };
    let response = render::object(kind, format, code, &render::in_version(kind, stored))?;
    Ok(body::warn(response, &warnings))
}

/// The object a write is about.
#[derive(Clone)]
pub struct Target<'a> {
    /// Kind as the client sees it.
    pub kind: &'static Kind,
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// Subresource written through, if any.
    pub subresource: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// That of a request.
    pub fn of(c: &'a Context, kind: &'static Kind) -> Self {
        let subresource = Some(c.info.subresource.as_str()).filter(|s| !s.is_empty());
        Self {
            kind,
            namespace: c.namespace(kind),
            name: &c.info.name,
            subresource,
        }
    }
}

impl<'a> Writer<'a> {
    /// The one who makes a request.
    pub fn of(c: &'a Context, manager: &'a str) -> Self {
        Self {
            app: &c.app,
            user: Some(&c.user),
            manager,
        }
    }

    /// The server itself.
    pub fn server(app: &'a App) -> Self {
        Self {
            app,
            user: None,
            manager: SERVER,
        }
    }

    fn writing(self, kind: &'static Kind, subresource: Option<&'a str>) -> Writing<'a> {
        Writing {
            kind,
            subresource: subresource.unwrap_or_default(),
            manager: self.manager,
            now: Timestamp::now(),
        }
    }

    /// Stores a new object, given in the kind's version.
    ///
    /// # Errors
    /// The refusal; 409 if the name is taken.
    pub async fn create(self, kind: &'static Kind, value: Value, dry: bool) -> Result<Value> {
        match self.create_owned(kind, value.clone(), dry, Owners::Noted).await {
            Err(e) if e.code == 413 => self.create_owned(kind, value, dry, Owners::Forgotten).await,
            done => done,
        }
    }

    /// Stores a new object that is what a configuration says, given in the kind's version.
    ///
    /// # Errors
    /// The refusal; 409 if the name is taken.
    pub async fn create_applied(self, kind: &'static Kind, config: &Value, dry: bool) -> Result<Value> {
        let uid = metadata::uid(config);
        if !uid.is_empty() {
            let why =
                format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
            return Err(ApiError::conflict(
                kind.group,
                kind.plural,
                metadata::name(config),
                &why,
            ));
        }
        let mut value = self.writing(kind, None).apply(&Value::Null, config, false)?;
        model::check_fields(kind, &mut value, None)?;
        self.create_owned(kind, value, dry, Owners::Applied).await
    }

    async fn create_owned(self, kind: &'static Kind, mut value: Value, dry: bool, owners: Owners) -> Result<Value> {
        if !metadata::resource_version(&value).is_empty() {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let storage = model::storage(kind)?;
        for field in [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "generation",
            "resourceVersion",
        ] {
            metadata::set(&mut value, field, Value::Null);
        }
        match owners {
            Owners::Noted => {
                api::defaults::apply(kind, &mut value);
                self.writing(kind, None).update(&Value::Null, &mut value);
            }
            Owners::Applied => {}
            Owners::Forgotten => metadata::set(&mut value, "managedFields", Value::Null),
        }
        model::to_storage(kind, &mut value);
        metadata::set(&mut value, "uid", uuid::Uuid::new_v4().to_string().into());
        metadata::set(
            &mut value,
            "creationTimestamp",
            api::time::time(Timestamp::now()).into(),
        );
        if let Some(user) = self.user {
            csr::stamp(storage, &mut value, user);
        }
        strategy::prepare_create(storage, &mut value);
        api::defaults::apply(storage, &mut value);
        let prefix = Some(
            value["metadata"]["generateName"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
        .filter(|p| !p.is_empty() && metadata::name(&value).is_empty());
        for _ in 0..NAME_TRIES {
            let mut value = value.clone();
            if let Some(p) = &prefix {
                metadata::set(&mut value, "name", metadata::generated_name(p).into());
            }
            match self.store_new(kind, storage, value, dry).await {
                Err(e) if e.code == 409 && e.reason == "AlreadyExists" && prefix.is_some() => {}
                done => return done,
            }
        }
        let name = prefix.unwrap_or_default();
        Err(ApiError::already_exists(kind.group, kind.plural, &name))
    }

    async fn store_new(
        self,
        kind: &'static Kind,
        storage: &'static Kind,
        mut value: Value,
        dry: bool,
    ) -> Result<Value> {
        let (namespace, name) = (
            metadata::namespace(&value).to_owned(),
            metadata::name(&value).to_owned(),
        );
        let attributes = Attributes {
            operation: Operation::Create,
            group: storage.group,
            plural: storage.plural,
            subresource: "",
            namespace: &namespace,
            name: &name,
        };
        if let Err(e) = admission::admit(&CacheLookup(&self.app.cache), &attributes, &mut value) {
            // What admission misses may have been created a moment ago: look again once the caches are current.
            if e.code >= 500 {
                return Err(e);
            }
            self.app.cache.consistent().await?;
            admission::admit(&CacheLookup(&self.app.cache), &attributes, &mut value)?;
        }
        if storage.plural == "pods" {
            api::defaults::apply(storage, &mut value);
        }
        restrict::check(self.app, self.user, storage, &attributes, &value, None)?;
        model::refuse_invalid(kind, &name, &validation::validate_create(storage, &value))?;
        if is_service(storage) {
            let _lock = self.app.services.lock().await;
            self.assign(&mut value, None).await?;
            return objects::create(self.app, storage, value, dry).await;
        }
        objects::create(self.app, storage, value, dry).await
    }

    /// Gives a Service its addresses and ports. The lock must be held.
    async fn assign(self, value: &mut Value, old: Option<&Value>) -> Result<()> {
        self.app.cache.consistent().await?;
        let taken = self.taken(metadata::namespace(value), metadata::name(value))?;
        service::assign(&self.app.ranges, &taken, value, old)
    }

    fn taken(self, namespace: &str, name: &str) -> Result<service::Taken> {
        let cache = self.app.cache.kind("", "services").ok_or_else(ApiError::no_such_path)?;
        let all: Vec<Value> = cache.list("", 0, |_| true).items.iter().map(|o| o.value()).collect();
        Ok(service::Taken::by_others(&all, namespace, name))
    }

    /// Changes an object. `compute` makes the new version, both in the kind's version, and may be called repeatedly.
    ///
    /// # Errors
    /// The refusal.
    pub async fn update(
        self,
        target: &Target<'_>,
        dry: bool,
        mut compute: impl FnMut(&Value) -> Result<Value>,
    ) -> Result<Outcome> {
        match self.change(target, dry, Owners::Noted, &mut compute).await {
            Err(e) if e.code == 413 => self.change(target, dry, Owners::Forgotten, &mut compute).await,
            done => done,
        }
    }

    /// Changes an object to what a configuration says of it; `force` takes what others own.
    ///
    /// # Errors
    /// The refusal; 409 with the fields that others own.
    pub async fn apply(self, target: &Target<'_>, config: &Value, force: bool, dry: bool) -> Result<Outcome> {
        let writing = self.writing(target.kind, target.subresource);
        self.change(target, dry, Owners::Applied, &mut |live| {
            let mut new = writing.apply(live, config, force)?;
            model::check_fields(target.kind, &mut new, None)?;
            Ok(new)
        })
        .await
    }

    /// Notes the server's own change of an object that is stored as it is.
    pub fn note(self, storage: &'static Kind, subresource: Option<&str>, old: &Value, new: &mut Value) {
        self.writing(storage, subresource).update(old, new);
    }

    async fn change(
        self,
        target: &Target<'_>,
        dry: bool,
        owners: Owners,
        compute: &mut impl FnMut(&Value) -> Result<Value>,
    ) -> Result<Outcome> {
        let storage = model::storage(target.kind)?;
        let whole_service = is_service(storage) && target.subresource.is_none();
        let _lock = if whole_service {
            Some(self.app.services.lock().await)
        } else {
            None
        };
        let taken = if whole_service {
            self.app.cache.consistent().await?;
            Some(self.taken(target.namespace, target.name)?)
        } else {
            None
        };
        objects::modify(self.app, storage, target.namespace, target.name, dry, |old| {
            let live = render::in_version(target.kind, old.clone());
            let mut new = compute(&live)?;
            preconditions(target.kind, target.name, &new, old)?;
            keep_identity(&mut new, old);
            match owners {
                Owners::Noted => {
                    api::defaults::apply(target.kind, &mut new);
                    self.writing(target.kind, target.subresource).update(&live, &mut new);
                }
                Owners::Applied => {}
                Owners::Forgotten => metadata::set(&mut new, "managedFields", Value::Null),
            }
            model::to_storage(target.kind, &mut new);
            self.settle(target, storage, new, old, taken.as_ref())
        })
        .await
    }

    /// What is stored for a new version of an object.
    fn settle(
        self,
        target: &Target<'_>,
        storage: &'static Kind,
        mut new: Value,
        old: &Value,
        taken: Option<&service::Taken>,
    ) -> Result<Modify> {
        strategy::prepare_update(storage, &mut new, old, target.subresource);
        api::defaults::apply(storage, &mut new);
        let attributes = Attributes {
            operation: Operation::Update,
            group: storage.group,
            plural: storage.plural,
            subresource: target.subresource.unwrap_or_default(),
            namespace: target.namespace,
            name: target.name,
        };
        admission::admit(&CacheLookup(&self.app.cache), &attributes, &mut new)?;
        restrict::check(self.app, self.user, storage, &attributes, &new, Some(old))?;
        if let Some(taken) = taken {
            service::assign(&self.app.ranges, taken, &mut new, Some(old))?;
        }
        let errors = validation::validate_update(storage, &new, old, target.subresource);
        model::refuse_invalid(target.kind, target.name, &errors)?;
        if managed::only_times_differ(old, &new) {
            let kept = old["metadata"].get("managedFields").cloned().unwrap_or_default();
            metadata::set(&mut new, "managedFields", kept);
        }
        Ok(if strategy::ends(storage, &new) {
            Modify::Delete(new)
        } else {
            Modify::Write(new)
        })
    }
}

/// What of the metadata no write changes.
fn keep_identity(new: &mut Value, old: &Value) {
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ] {
        let kept = old["metadata"].get(field).cloned().unwrap_or(Value::Null);
        metadata::set(new, field, kept);
    }
}

/// An update names the version it is based on, and may name the UID it means.
fn preconditions(kind: &Kind, name: &str, new: &Value, old: &Value) -> Result<()> {
    let (version, uid) = (metadata::resource_version(new), metadata::uid(new));
    if !uid.is_empty() && uid != metadata::uid(old) {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            metadata::uid(old)
        );
        return Err(ApiError::conflict(kind.group, kind.plural, name, &why));
    }
    if version.is_empty() && !strategy::allows_unconditional_update(kind) {
        let error = FieldError::invalid("metadata.resourceVersion", &0.into(), "must be specified for an update");
        return Err(ApiError::invalid(kind.group, kind.kind, name, &[error]));
    }
    if !version.is_empty() && version != metadata::resource_version(old) {
        return Err(ApiError::modified(kind, name));
    }
    Ok(())
}

fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "services"
}
