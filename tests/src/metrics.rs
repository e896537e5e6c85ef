//! Metrics as Prometheus reads them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// All samples of one scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Such as `postern_requests_total`.
    pub name: String,
    /// Label → value.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

impl Metrics {
    /// Reads the text format (Prometheus 0.0.4 or OpenMetrics 1.0; without time stamps and exemplars).
    ///
    /// # Errors
    /// A line is not a sample.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).with_context(|| format!("not a sample: {line}")));
        Ok(Self { samples: samples.collect::<Result<_>>()? })
    }

    /// All samples.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The value of the one sample with this name and at least these labels; `None` if there is none or more than one.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self.matching(name, labels);
        found.next().filter(|_| found.next().is_none()).map(|sample| sample.value)
    }

    /// The sum over all samples with this name and at least these labels; 0 if there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        let has =
            |sample: &Sample| labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value));
        self.samples.iter().filter(move |sample| sample.name == name && has(sample))
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = series.split_once('{') else {
        return Some(Sample { name: series.trim().to_owned(), labels: BTreeMap::new(), value });
    };
    let mut rest = rest.trim_end().strip_suffix('}')?;
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(key.trim().to_owned(), value);
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Some(Sample { name: name.to_owned(), labels, value })
}

/// A label's value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.chars();
    loop {
        match characters.next()? {
            '"' => return Some((value, characters.as_str())),
            '\\' => match characters.next()? {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_labels_and_values() {
        let text =
            "# TYPE a gauge\na 1.5\nb_total{x=\"1\",y=\"a \\\"b\\\" {c}, d\"} 2\nb_total{x=\"2\",y=\"\"} 3\n# EOF\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.value("a", &[]), Some(1.5));
        assert_eq!(metrics.value("b_total", &[("y", "a \"b\" {c}, d")]), Some(2.0));
        assert_eq!(metrics.value("b_total", &[]), None);
        assert_eq!((metrics.sum("b_total", &[]), metrics.sum("c", &[])), (5.0, 0.0));
        assert!(Metrics::parse("a one").is_err());
    }
}
