//! Labels that what is asked calls for by itself: a model that knows what is confidential, an endpoint that only its readers use.

use postern_wire::call::Endpoint;

use super::label::Label;

/// What models and endpoints call for.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// Names as they are asked, in lower case; one that ends with `*` stands for all that begin so.
    models: Vec<(String, Label)>,
    endpoints: Vec<(Endpoint, Label)>,
}

impl Routes {
    /// Of what is configured.
    #[must_use]
    pub fn new(models: Vec<(String, Label)>, endpoints: Vec<(Endpoint, Label)>) -> Self {
        let models = models.into_iter().map(|(name, label)| (folded(&name), label)).collect();
        Self { models, endpoints }
    }

    /// The join of what `model` at `endpoint` calls for.
    #[must_use]
    pub fn label(&self, endpoint: Endpoint, model: &str) -> Option<Label> {
        let model = folded(model);
        let fits = |name: &String| match name.strip_suffix('*') {
            Some(beginning) => model.starts_with(beginning),
            None => model == *name,
        };
        let models = self.models.iter().filter(|(name, _)| fits(name)).map(|(_, label)| *label);
        let endpoints = self.endpoints.iter().filter(|(which, _)| *which == endpoint).map(|(_, label)| *label);
        models.chain(endpoints).reduce(Label::join)
    }

    /// What is configured of models: names, with or without `*`, and what they call for.
    pub fn models(&self) -> impl Iterator<Item = (&str, Label)> {
        self.models.iter().map(|(name, label)| (name.as_str(), *label))
    }

    /// All that anything calls for.
    pub fn labels(&self) -> impl Iterator<Item = Label> {
        self.models().map(|(_, label)| label).chain(self.endpoints.iter().map(|(_, label)| *label))
    }
}

/// Some targets take a name in any case.
fn folded(model: &str) -> String {
    model.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::label::Labels;

    #[test]
    fn the_highest_of_all_that_fit_counts() {
        let names = ["public", "internal", "confidential", "classified"].map(str::to_owned);
        let labels = Labels::new(names.into()).unwrap();
        let label = |name| labels.by_name(name).unwrap();
        let models = [("HR-*", "internal"), ("hr-pay", "classified"), ("chat", "public")];
        let models = models.map(|(name, wanted)| (name.to_owned(), label(wanted))).into();
        let routes = Routes::new(models, vec![(Endpoint::Embeddings, label("confidential"))]);
        let asked = |endpoint, model| routes.label(endpoint, model).map(|label| labels.name(label));
        assert_eq!(asked(Endpoint::Chat, "hr-letters"), Some("internal"));
        assert_eq!(asked(Endpoint::Chat, "Hr-Pay"), Some("classified"));
        assert_eq!(asked(Endpoint::Chat, "hr-pay-2"), Some("internal"));
        assert_eq!(asked(Endpoint::Chat, "chat"), Some("public"));
        assert_eq!(asked(Endpoint::Chat, "chatty"), None);
        assert_eq!(asked(Endpoint::Embeddings, "chatty"), Some("confidential"));
        assert_eq!(asked(Endpoint::Embeddings, "hr-pay"), Some("classified"));
    }
}
