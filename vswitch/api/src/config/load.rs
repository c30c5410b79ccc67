//! Text to configuration.

use serde::de::DeserializeOwned;

use super::check::{Reporter, check};
use super::decode::{Fault, MAX_PROBLEMS, decode};
use super::errors::{ConfigErrors, Problem};
use super::tree::{Flaw, Span, Tree};
use super::{Config, Environment, Port};

/// Reads and judges a configuration. `file_name` is what messages call the text.
///
/// The result is complete: the control socket has a path, every port its bridge, and there is a
/// worker if `environment` knows the cores. The error has every problem found, in the order of
/// the file, at most 50.
pub fn load(
    text: &str,
    file_name: &str,
    environment: &Environment,
) -> Result<Config, ConfigErrors> {
    let mut found = Found::default();
    let config = found.parse(text).map(|(tree, mut config): (_, Config)| {
        config.resolve(environment);
        check(
            &config,
            environment,
            &mut Placed {
                tree: &tree,
                found: &mut found,
            },
        );
        config
    });
    match (config, found.problems.is_empty()) {
        (Some(config), true) => Ok(config),
        _ => Err(found.errors(file_name)),
    }
}

/// Reads a single port, written as below its name in the configuration; for [`add_port`], which
/// judges it.
pub fn load_port(text: &str, file_name: &str) -> Result<Port, ConfigErrors> {
    let mut found = Found::default();
    let port = found.parse(text).map(|(_, port)| port);
    match (port, found.problems.is_empty()) {
        (Some(port), true) => Ok(port),
        _ => Err(found.errors(file_name)),
    }
}

/// `config` with one more port, judged as a whole; its problems have no place in a text. Replaces
/// a port of the same name, so refuse that first.
pub fn add_port(
    config: &Config,
    name: &str,
    port: Port,
    environment: &Environment,
) -> Result<Config, ConfigErrors> {
    let mut config = config.clone();
    config.ports.insert(name.to_owned(), port);
    config.resolve(environment);
    let mut problems = Vec::new();
    check(&config, environment, &mut Unplaced(&mut problems));
    if problems.is_empty() {
        return Ok(config);
    }
    Err(ConfigErrors {
        file: format!("port {name}"),
        problems,
    })
}

#[derive(Default)]
struct Found {
    problems: Vec<(Span, Problem)>,
}

impl Found {
    /// Text to value; `None` when there is none that is worth a closer look.
    fn parse<'t, T: DeserializeOwned>(&mut self, text: &'t str) -> Option<(Tree<'t>, T)> {
        let mut flaws = Vec::new();
        let mut tree = match Tree::parse(text, &mut flaws) {
            Ok(tree) => tree,
            Err(flaw) => {
                // The text is still good for showing the line.
                self.flaws(&Tree::empty(text), flaws.into_iter().chain([flaw]));
                return None;
            }
        };
        self.flaws(&tree, flaws);
        let mut faults = Vec::new();
        let value = decode(&mut tree, &mut faults);
        tree.settle();
        for Fault {
            span,
            message,
            help,
        } in faults
        {
            self.push(&tree, span, String::new(), message, help);
        }
        value.map(|value| (tree, value))
    }

    /// What was found, in the order of the text.
    fn errors(mut self, file_name: &str) -> ConfigErrors {
        self.problems.sort_by_key(|(span, _)| *span);
        self.problems.dedup();
        let problems = self
            .problems
            .into_iter()
            .map(|(_, problem)| problem)
            .take(MAX_PROBLEMS);
        ConfigErrors {
            file: file_name.to_owned(),
            problems: problems.collect(),
        }
    }

    fn flaws(&mut self, tree: &Tree<'_>, flaws: impl IntoIterator<Item = Flaw>) {
        for Flaw {
            span,
            message,
            help,
        } in flaws
        {
            self.push(tree, span, String::new(), message, help);
        }
    }

    fn push(&mut self, tree: &Tree<'_>, span: Span, key: String, message: String, help: String) {
        let place = Some(tree.place(span));
        self.problems.push((
            span,
            Problem {
                key,
                place,
                message,
                help,
            },
        ));
    }
}

/// Places problems in the text that the configuration came from.
struct Placed<'a, 't> {
    tree: &'a Tree<'t>,
    found: &'a mut Found,
}

impl Reporter for Placed<'_, '_> {
    fn problem(&mut self, path: &[&str], at_key: bool, message: String, help: String) {
        let span = self.tree.locate(path, at_key);
        let key = self.tree.written(path).join(".");
        self.found.push(self.tree, span, key, message, help);
    }

    fn number(&self, list: &[&str], index: usize) -> usize {
        let index_text = index.to_string();
        let path = [list, &[&index_text]].concat();
        let place = self.tree.written(&path).pop();
        place.and_then(|p| p.parse().ok()).unwrap_or(index) + 1
    }

    fn lost(&self, path: &[&str]) -> bool {
        self.tree.lost(path)
    }
}

/// For a configuration that has no text.
struct Unplaced<'a>(&'a mut Vec<Problem>);

impl Reporter for Unplaced<'_> {
    fn problem(&mut self, path: &[&str], _: bool, message: String, help: String) {
        self.0.push(Problem {
            key: path.join("."),
            place: None,
            message,
            help,
        });
    }

    fn number(&self, _: &[&str], index: usize) -> usize {
        index + 1
    }

    fn lost(&self, _: &[&str]) -> bool {
        false
    }
}
