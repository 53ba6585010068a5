//! Answers to questions about the zone: the Kubernetes DNS-Based Service Discovery specification, version 1.1.0. Pure.
//!
//! The difference that resolvers depend on is kept exactly: a name that is not there is NXDOMAIN, a name without records of the
//! asked type is an empty answer; both carry the SOA.

use std::net::IpAddr;

use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
    },
};

use crate::zone::{Endpoint, Port, Service, Zone, undashed};

/// How long answers may be kept, in seconds. Short, because endpoints move.
pub const TTL: u32 = 5;
/// The version of the specification, as `dns-version` says it.
const VERSION: &str = "1.1.0";
/// How many names an ExternalName may lead through inside the cluster.
const MAX_ALIASES: usize = 8;

/// What the zone says to a question.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// The zone has the last word.
    Final {
        /// NoError or NXDomain.
        code: ResponseCode,
        /// The answer section.
        answers: Vec<Record>,
        /// The authority section.
        authorities: Vec<Record>,
        /// The additional section.
        additionals: Vec<Record>,
    },
    /// The name stands for one outside of the zone: these records, and then whatever that name has.
    Elsewhere {
        /// The alias records so far.
        answers: Vec<Record>,
        /// The name to ask others for.
        target: Name,
    },
    /// The zone knows nothing of such names.
    NotOurs,
}

/// Records found at a name.
enum Found {
    Records(Vec<RData>, Vec<Record>),
    Alias(Name),
    Nothing,
    NoSuchName,
    NotOurs,
}

impl Zone {
    /// Answers one question.
    pub fn answer(&self, question: &Query) -> Answer {
        if !matches!(question.query_class(), DNSClass::IN | DNSClass::ANY) {
            return Answer::NotOurs;
        }
        let kind = question.query_type();
        let mut name = question.name().clone();
        let mut answers = Vec::new();
        for _ in 0..MAX_ALIASES {
            match self.find(&name, kind) {
                Found::NotOurs if answers.is_empty() => return Answer::NotOurs,
                Found::NotOurs => return Answer::Elsewhere { answers, target: name },
                Found::Alias(target) => {
                    answers.push(record(&name, RData::CNAME(CNAME(target.clone()))));
                    if kind == RecordType::CNAME {
                        return self.done(ResponseCode::NoError, answers, Vec::new());
                    }
                    name = target;
                }
                Found::Records(data, additionals) => {
                    answers.extend(data.into_iter().map(|data| record(&name, data)));
                    return self.done(ResponseCode::NoError, answers, additionals);
                }
                Found::Nothing => return self.done(ResponseCode::NoError, answers, Vec::new()),
                Found::NoSuchName => return self.done(ResponseCode::NXDomain, answers, Vec::new()),
            }
        }
        self.done(ResponseCode::NoError, answers, Vec::new())
    }

    fn done(&self, code: ResponseCode, answers: Vec<Record>, additionals: Vec<Record>) -> Answer {
        let negative = answers.is_empty() || code != ResponseCode::NoError;
        let authorities = if negative {
            vec![record(&self.name(&[]), self.soa())]
        } else {
            Vec::new()
        };
        Answer::Final {
            code,
            answers,
            authorities,
            additionals,
        }
    }

    fn find(&self, name: &Name, kind: RecordType) -> Found {
        let labels: Vec<String> = name
            .iter()
            .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
            .collect();
        let Some(below) = labels.strip_suffix(self.domain.as_slice()) else {
            return self.find_reverse(name, kind);
        };
        let below: Vec<&str> = below.iter().map(String::as_str).collect();
        match below.as_slice() {
            [] => self.find_apex(kind),
            ["dns-version"] => records(kind, [RData::TXT(TXT::new(vec![VERSION.to_owned()]))]),
            ["dns"] => Found::Nothing,
            ["ns", "dns"] => self.find_name_server(kind),
            [rest @ .., "svc"] => self.find_service(rest, kind),
            [rest @ .., "pod"] => self.find_pod(rest, kind),
            _ => Found::NoSuchName,
        }
    }

    fn find_apex(&self, kind: RecordType) -> Found {
        let name_server = RData::NS(NS(self.name(&["ns", "dns"])));
        records(kind, [self.soa(), name_server])
    }

    /// The name server's addresses: those of the cluster's DNS service, wherever it is.
    fn find_name_server(&self, kind: RecordType) -> Found {
        let service = self.services.get(&("kube-system".to_owned(), "kube-dns".to_owned()));
        records(
            kind,
            service
                .iter()
                .flat_map(|service| &service.addresses)
                .map(|address| address_data(*address)),
        )
    }

    fn find_service(&self, labels: &[&str], kind: RecordType) -> Found {
        let (service, name, namespace, before) = match labels {
            [] => return Found::Nothing,
            [namespace] => return self.namespace(namespace),
            [before @ .., name, namespace] => match self.services.get(&((*namespace).to_owned(), (*name).to_owned())) {
                Some(service) => (service, *name, *namespace, before),
                None => return Found::NoSuchName,
            },
        };
        if let Some(target) = &service.external {
            return if before.is_empty() {
                Found::Alias(target.clone())
            } else {
                Found::NoSuchName
            };
        }
        match before {
            [] if kind == RecordType::SRV => self.srv(service, &[name, namespace], |_| true),
            [] => records(kind, service.all_addresses().map(address_data)),
            [protocol] if protocol.starts_with('_') => {
                let known = service
                    .all_ports()
                    .any(|port| format!("_{}", port.protocol) == *protocol);
                if known { Found::Nothing } else { Found::NoSuchName }
            }
            [label] => {
                let mut addresses = service
                    .endpoints
                    .iter()
                    .filter(|endpoint| endpoint.label == *label)
                    .map(|it| it.address)
                    .peekable();
                if addresses.peek().is_none() {
                    Found::NoSuchName
                } else {
                    records(kind, addresses.map(address_data))
                }
            }
            [port, protocol] => {
                let asked = |it: &Port| format!("_{}", it.name) == *port && format!("_{}", it.protocol) == *protocol;
                match (service.all_ports().any(asked), kind) {
                    (false, _) => Found::NoSuchName,
                    (true, RecordType::SRV | RecordType::ANY) => self.srv(service, &[name, namespace], asked),
                    (true, _) => Found::Nothing,
                }
            }
            _ => Found::NoSuchName,
        }
    }

    /// SRV records of the ports that `asked` selects, with the addresses of their targets.
    fn srv(&self, service: &Service, labels: &[&str], asked: impl Fn(&Port) -> bool) -> Found {
        let mut data = Vec::new();
        let mut additionals = Vec::new();
        let mut add = |first: &[&str], ports: Vec<&Port>, addresses: &[IpAddr]| {
            let labels: Vec<&str> = first.iter().chain(labels).copied().chain(["svc"]).collect();
            let target = self.name(&labels);
            let before = data.len();
            data.extend(
                ports
                    .iter()
                    .map(|port| RData::SRV(SRV::new(0, 100, port.number, target.clone()))),
            );
            if data.len() > before {
                additionals.extend(addresses.iter().map(|address| record(&target, address_data(*address))));
            }
        };
        if service.addresses.is_empty() {
            for endpoint in &service.endpoints {
                let ports = endpoint.ports.iter().filter(|port| asked(port)).collect();
                add(&[&endpoint.label], ports, &[endpoint.address]);
            }
        } else {
            add(
                &[],
                service.ports.iter().filter(|port| asked(port)).collect(),
                &service.addresses,
            );
        }
        if data.is_empty() {
            Found::Nothing
        } else {
            Found::Records(data, additionals)
        }
    }

    fn find_pod(&self, labels: &[&str], kind: RecordType) -> Found {
        match labels {
            [] => Found::Nothing,
            [namespace] => self.namespace(namespace),
            [label, namespace] if self.namespaces.contains(*namespace) => match undashed(label) {
                Some(address) => records(kind, [address_data(address)]),
                None => Found::NoSuchName,
            },
            _ => Found::NoSuchName,
        }
    }

    fn namespace(&self, namespace: &str) -> Found {
        if self.namespaces.contains(namespace) {
            Found::Nothing
        } else {
            Found::NoSuchName
        }
    }

    fn find_reverse(&self, name: &Name, kind: RecordType) -> Found {
        let labels = name.iter().count();
        // Shorter names are networks, which are not ours to speak for.
        let Some(network) = name.parse_arpa_name().ok().filter(|_| labels == 6 || labels == 34) else {
            return Found::NotOurs;
        };
        let Some(names) = self.reverse.get(&network.addr()) else {
            return Found::NotOurs;
        };
        records(
            kind,
            names.iter().map(|labels| {
                let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
                RData::PTR(PTR(self.name(&labels)))
            }),
        )
    }

    /// A name below the domain. Labels come from objects whose names the API server has validated.
    fn name(&self, labels: &[&str]) -> Name {
        let all = labels.iter().copied().chain(self.domain.iter().map(String::as_str));
        let mut name = Name::from_labels(all.map(str::as_bytes)).unwrap_or_default();
        name.set_fqdn(true);
        name
    }

    fn soa(&self) -> RData {
        let (server, person) = (self.name(&["ns", "dns"]), self.name(&["hostmaster"]));
        RData::SOA(SOA::new(server, person, 1, 7200, 1800, 86400, TTL))
    }
}

impl Service {
    fn all_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let ends = self
            .endpoints
            .iter()
            .filter(|_| self.addresses.is_empty())
            .map(|endpoint| endpoint.address);
        let mut seen = std::collections::BTreeSet::new();
        self.addresses
            .iter()
            .copied()
            .chain(ends)
            .filter(move |address| seen.insert(*address))
    }

    fn all_ports(&self) -> impl Iterator<Item = &Port> + '_ {
        let of_endpoints = self.endpoints.iter().filter(|_| self.addresses.is_empty());
        self.ports
            .iter()
            .filter(|_| !self.addresses.is_empty())
            .chain(of_endpoints.flat_map(|it: &Endpoint| &it.ports))
    }
}

fn records(kind: RecordType, data: impl IntoIterator<Item = RData>) -> Found {
    let matching: Vec<RData> = data
        .into_iter()
        .filter(|data| kind == RecordType::ANY || data.record_type() == kind)
        .collect();
    if matching.is_empty() {
        Found::Nothing
    } else {
        Found::Records(matching, Vec::new())
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
