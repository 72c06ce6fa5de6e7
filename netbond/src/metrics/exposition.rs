//! The text that Prometheus reads, made of a [`Status`].

use std::fmt;
use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, prometheus_text, text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::{Registry, Unit},
};

use super::families::{BONDS, CLASSES, INSTANCE, Kind, LANS, Metric, PATHS, Sample, Value};
use crate::status::Status;

/// What all names begin with.
const PREFIX: &str = "netbond";

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' own text format, 0.0.4: for whoever does not ask for OpenMetrics.
    Prometheus,
}

impl Format {
    /// What the client asks for in its `Accept` header.
    #[must_use]
    pub fn accepted(header: &str) -> Self {
        if header.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// For the header `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// Everything of a status as text.
///
/// # Errors
///
/// None is to be expected: a text in memory takes all that is written.
pub fn render(status: Arc<Status>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Reader(status)));
    let mut out = String::new();
    match format {
        Format::OpenMetrics => text::encode(&mut out, &registry)?,
        Format::Prometheus => prometheus_text::encode(&mut out, &registry)?,
    }
    Ok(out)
}

struct Reader(Arc<Status>);

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

/// Labels that name a thing.
type Names<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Reader {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(status) = self;
        encode(&mut encoder, INSTANCE, &[(vec![], &**status)])?;
        let mut lans = Vec::new();
        for lan in &status.lans {
            lans.push((vec![("lan", lan.name.as_str())], lan));
        }
        encode(&mut encoder, LANS, &lans)?;
        let mut bonds = Vec::new();
        let mut paths = Vec::new();
        let mut classes = Vec::new();
        for bond in &status.bonds {
            let names = vec![("bond", bond.name.as_str())];
            let with = |kind, name| [names.as_slice(), &[(kind, name)]].concat();
            for path in &bond.paths {
                paths.push((with("path", path.name.as_str()), path));
            }
            for class in &bond.classes {
                classes.push((with("class", class.name.as_str()), class));
            }
            bonds.push((names, bond));
        }
        encode(&mut encoder, BONDS, &bonds)?;
        encode(&mut encoder, PATHS, &paths)?;
        encode(&mut encoder, CLASSES, &classes)
    }
}

/// All metrics of things of one kind: each metric's samples stand together.
fn encode<T>(
    encoder: &mut DescriptorEncoder<'_>,
    metrics: &[Metric<T>],
    things: &[(Names<'_>, &T)],
) -> fmt::Result {
    for metric in metrics {
        let unit = metric.unit.map(|unit| Unit::Other(unit.to_owned()));
        let kind = match metric.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Info => MetricType::Info,
        };
        let mut family =
            encoder.encode_descriptor(metric.name, metric.help, unit.as_ref(), kind)?;
        for (names, thing) in things {
            for Sample { labels, value } in (metric.samples)(thing) {
                let labels = labels.iter().map(|(name, value)| (*name, value.as_str()));
                let labels: Names<'_> = names.iter().copied().chain(labels).collect();
                write(family.encode_family(&labels)?, value)?;
            }
        }
    }
    Ok(())
}

fn write(mut metric: MetricEncoder<'_>, value: Value) -> fmt::Result {
    const NO_LABELS: [(&str, &str); 0] = [];
    const NO_EXEMPLAR: Option<&Exemplar<[(&str, &str); 0], f64>> = None;
    match value {
        Value::Count(count) => metric.encode_counter(&count, NO_EXEMPLAR),
        Value::Number(number) => metric.encode_gauge(&number),
        Value::Info => metric.encode_info(&NO_LABELS),
    }
}
