//! YAML as a tree of nodes that know where they stand.
//!
//! The types of the configuration are read from this tree, and problems found later, by key, are
//! placed with it. Nodes live in one list and refer to each other by index, so an alias costs
//! nothing however often it is used, and depth is bounded by [`MAX_DEPTH`]; work on an expanded
//! tree is bounded by whoever walks it. A node that turned out wrong is *struck*: it counts as
//! absent from then on, and what is only a consequence of its absence is not reported.
//!
//! Beyond YAML 1.2's core there is the merge key `<<`, which most operators expect. Tags, several
//! documents and keys that are not scalars have no meaning in a configuration and are refused.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_yaml::granit_parser::{Event, Marker, Parser, ScalarStyle, Span as EventSpan, options};

use super::errors::Place;
use super::limits;

/// Levels of nesting.
pub(super) const MAX_DEPTH: usize = 64;
/// Nodes, merged entries included.
const MAX_NODES: usize = 1 << 20;

/// Index of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeId(usize);

/// A run of characters, up to the end of the line it begins in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Span {
    /// From 1.
    pub(super) line: u32,
    /// From 1, in characters.
    pub(super) column: u32,
    /// Characters; 0: not known, or more than one line.
    pub(super) length: u32,
}

impl Span {
    fn point(mark: &Marker) -> Self {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            line: number(mark.line()),
            column: number(mark.col()).saturating_add(1),
            length: 1,
        }
    }

    fn of(span: &EventSpan) -> Self {
        let one_line = span.start.line() == span.end.line();
        let length = if one_line {
            span.end.col().saturating_sub(span.start.col())
        } else {
            0
        };
        Self {
            length: u32::try_from(length).unwrap_or(u32::MAX),
            ..Self::point(&span.start)
        }
    }
}

/// A node as seen from where it is used; with an alias that is not where it is defined.
#[derive(Debug, Clone, Copy)]
pub(super) struct Child {
    pub(super) node: NodeId,
    pub(super) span: Span,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_span: Span,
    pub(super) value: Child,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// `plain`: without quotes, so that it may be a number, a truth value or nothing.
    Scalar {
        text: String,
        plain: bool,
    },
    Seq(Vec<Child>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
struct Node {
    kind: Kind,
    struck: bool,
    /// An entry of this map was refused.
    lost_entries: bool,
    /// How many items stand before each item of this list in the text; empty: as many as in the list.
    places: Vec<usize>,
}

/// From a node to one of its children.
struct Step {
    /// In a map: where the key stands.
    key: Option<Span>,
    /// In a list: how many items stand before it in the text.
    place: Option<usize>,
    child: Child,
}

/// Something wrong with the YAML itself.
#[derive(Debug)]
pub(super) struct Flaw {
    pub(super) span: Span,
    pub(super) message: String,
    pub(super) help: String,
}

impl Flaw {
    fn new(span: Span, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            span,
            message: message.into(),
            help: help.into(),
        }
    }
}

/// A document.
#[derive(Debug)]
pub(super) struct Tree<'t> {
    text: &'t str,
    nodes: Vec<Node>,
    pub(super) root: Child,
}

impl<'t> Tree<'t> {
    /// Reads `text`. A flaw that leaves the rest readable is pushed to `flaws`; one that does not
    /// is the error.
    pub(super) fn parse(text: &'t str, flaws: &mut Vec<Flaw>) -> Result<Self, Flaw> {
        if text.len() > limits::TEXT {
            return Err(Flaw::new(
                Span {
                    line: 1,
                    column: 1,
                    length: 1,
                },
                format!(
                    "the configuration has {} bytes, the limit is {}",
                    text.len(),
                    limits::TEXT
                ),
                "split the ports over several switches",
            ));
        }
        let mut builder = Builder::new(flaws);
        let options = options! { emit_comments: false };
        for event in Parser::new_from_str_with_options(text, options) {
            let (event, span) = event.map_err(|e| {
                Flaw::new(
                    Span::point(e.marker()),
                    format!("not YAML: {}", e.kind()),
                    "check indentation, colons, quotes and brackets here and in the line above",
                )
            })?;
            builder.event(event, &span)?;
        }
        let Builder { nodes, root, .. } = builder;
        Ok(match root {
            Some(root) => Self { text, nodes, root },
            None => Self::empty(text),
        })
    }

    /// A tree with nothing in it, for showing places of a text that is not YAML.
    pub(super) fn empty(text: &'t str) -> Self {
        let root = Child {
            node: NodeId(0),
            span: Span {
                line: 1,
                column: 1,
                length: 1,
            },
        };
        Self {
            text,
            nodes: vec![Node::new(Kind::Map(Vec::new()))],
            root,
        }
    }

    pub(super) fn kind(&self, id: NodeId) -> &Kind {
        &self.nodes[id.0].kind
    }

    pub(super) fn is_struck(&self, id: NodeId) -> bool {
        self.nodes[id.0].struck
    }

    /// From now on the node counts as absent.
    pub(super) fn strike(&mut self, id: NodeId) {
        self.nodes[id.0].struck = true;
    }

    /// Removes an entry of a map by its key's place.
    pub(super) fn remove_entry(&mut self, map: NodeId, key_span: Span) {
        let node = &mut self.nodes[map.0];
        node.lost_entries = true;
        if let Kind::Map(entries) = &mut node.kind {
            entries.retain(|entry| entry.key_span != key_span);
        }
    }

    /// Whether something directly below the node is struck, so that the node is not whole.
    pub(super) fn is_torn(&self, id: NodeId) -> bool {
        let node = &self.nodes[id.0];
        node.lost_entries
            || match &node.kind {
                Kind::Scalar { .. } => false,
                Kind::Seq(items) => items.iter().any(|item| self.is_struck(item.node)),
                Kind::Map(entries) => entries.iter().any(|e| self.is_struck(e.value.node)),
            }
    }

    /// Where the thing at `path` stands: its key if `at_key`, else its value. What is not written
    /// is where the innermost written part of the path is.
    pub(super) fn locate(&self, path: &[&str], at_key: bool) -> Span {
        let mut here = self.root;
        let mut best = Span {
            line: 1,
            column: 1,
            length: 1,
        };
        for (depth, step) in path.iter().enumerate() {
            let Some(Step { key, child, .. }) = self.step(here, step) else {
                return best;
            };
            let last = depth + 1 == path.len();
            best = match (key, self.kind(child.node)) {
                (Some(key), Kind::Map(_) | Kind::Seq(_)) => key,
                (Some(key), _) if !last || at_key => key,
                _ => child.span,
            };
            here = child;
        }
        best
    }

    /// Whether what stands at `path` was struck, or something it hangs from was.
    pub(super) fn lost(&self, path: &[&str]) -> bool {
        let mut here = self.root;
        for step in path {
            if self.is_struck(here.node) {
                return true;
            }
            match self.step(here, step) {
                Some(step) => here = step.child,
                None => return false,
            }
        }
        self.is_struck(here.node)
    }

    /// A path as an operator counts: items of lists by their place in the text, where those that were struck are, too.
    pub(super) fn written<'p>(&self, path: &[&'p str]) -> Vec<Cow<'p, str>> {
        let mut here = Some(self.root);
        let in_text = |name: &&'p str| {
            let step = here.and_then(|from| self.step(from, name));
            here = step.as_ref().map(|step| step.child);
            match step.and_then(|step| step.place) {
                Some(place) => Cow::Owned(place.to_string()),
                None => Cow::Borrowed(*name),
            }
        };
        path.iter().map(in_text).collect()
    }

    /// Takes struck items out of lists, so that the others are counted as the types have them.
    pub(super) fn settle(&mut self) {
        let struck: Vec<bool> = self.nodes.iter().map(|node| node.struck).collect();
        for node in &mut self.nodes {
            let Kind::Seq(items) = &mut node.kind else {
                continue;
            };
            if items.iter().any(|item| struck[item.node.0]) {
                let places = items.iter().enumerate();
                let places = places.filter(|(_, item)| !struck[item.node.0]);
                node.places = places.map(|(place, _)| place).collect();
                items.retain(|item| !struck[item.node.0]);
            }
        }
    }

    fn step(&self, from: Child, name: &str) -> Option<Step> {
        match self.kind(from.node) {
            Kind::Map(entries) => {
                let entry = entries.iter().find(|entry| entry.key == name)?;
                Some(Step {
                    key: Some(entry.key_span),
                    place: None,
                    child: entry.value,
                })
            }
            Kind::Seq(items) => {
                let index = name.parse::<usize>().ok()?;
                let places = &self.nodes[from.node.0].places;
                Some(Step {
                    key: None,
                    place: Some(places.get(index).copied().unwrap_or(index)),
                    child: *items.get(index)?,
                })
            }
            Kind::Scalar { .. } => None,
        }
    }

    /// The span as a person sees it.
    pub(super) fn place(&self, span: Span) -> Place {
        let text = line(self.text, span.line);
        let text = text
            .strip_prefix('\u{feff}')
            .filter(|_| span.line == 1)
            .unwrap_or(text);
        let width = u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        let column = span.column.clamp(1, width.saturating_add(1));
        let rest = width.saturating_add(1) - column;
        let length = if span.length == 0 {
            rest
        } else {
            span.length.min(rest)
        }
        .max(1);
        Place {
            line: span.line,
            column,
            length,
            text: text.to_owned(),
        }
    }
}

/// A line by its number; YAML ends lines with LF, CR LF or CR.
fn line(text: &str, number: u32) -> &str {
    let mut rest = text;
    for _ in 1..number {
        let Some(end) = rest.find(['\n', '\r']) else {
            return "";
        };
        let width = if rest[end..].starts_with("\r\n") {
            2
        } else {
            1
        };
        rest = &rest[end + width..];
    }
    rest.split(['\n', '\r']).next().unwrap_or_default()
}

impl Node {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            struck: false,
            lost_entries: false,
            places: Vec::new(),
        }
    }
}

/// A collection whose end has not come.
struct Open {
    child: Child,
    /// The key that waits for its value.
    key: Option<(String, Span)>,
}

struct Builder<'f> {
    nodes: Vec<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, NodeId>,
    root: Option<Child>,
    flaws: &'f mut Vec<Flaw>,
}

impl<'f> Builder<'f> {
    fn new(flaws: &'f mut Vec<Flaw>) -> Self {
        Self {
            nodes: Vec::new(),
            open: Vec::new(),
            anchors: HashMap::new(),
            root: None,
            flaws,
        }
    }

    fn event(&mut self, event: Event<'_>, event_span: &EventSpan) -> Result<(), Flaw> {
        let span = Span::of(event_span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.no_tag(tag.is_some(), event_span);
                let plain = style == ScalarStyle::Plain;
                let kind = Kind::Scalar {
                    text: text.into_owned(),
                    plain,
                };
                let child = self.node(kind, anchor, span)?;
                self.attach(child)
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(&node) if self.open.iter().all(|open| open.child.node != node) => {
                    self.attach(Child { node, span })
                }
                _ => Err(Flaw::new(
                    span,
                    "the alias stands inside of what it refers to",
                    "write the value out instead",
                )),
            },
            Event::SequenceStart(_, anchor, tag) => {
                self.no_tag(tag.is_some(), event_span);
                self.open(Kind::Seq(Vec::new()), anchor, span)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.no_tag(tag.is_some(), event_span);
                self.open(Kind::Map(Vec::new()), anchor, span)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(done) => {
                    self.merge(done.child)?;
                    self.attach(done.child)
                }
                None => Ok(()),
            },
            Event::DocumentStart(..) if self.root.is_some() => Err(Flaw::new(
                Span { length: 3, ..span },
                "a second document begins here",
                "keep one document in the file and remove this `---`",
            )),
            _ => Ok(()),
        }
    }

    fn no_tag(&mut self, tagged: bool, span: &EventSpan) {
        if tagged {
            let span = span.tag_span().map_or(Span::of(span), |tag| Span::of(&tag));
            self.flaws
                .push(Flaw::new(span, "tags mean nothing here", "remove the `!…`"));
        }
    }

    fn node(&mut self, kind: Kind, anchor: usize, span: Span) -> Result<Child, Flaw> {
        let node = NodeId(self.nodes.len());
        if node.0 >= MAX_NODES {
            return Err(Flaw::new(
                span,
                "the configuration has too many values",
                "make it shorter",
            ));
        }
        self.nodes.push(Node::new(kind));
        if anchor != 0 {
            self.anchors.insert(anchor, node);
        }
        Ok(Child { node, span })
    }

    fn open(&mut self, kind: Kind, anchor: usize, span: Span) -> Result<(), Flaw> {
        if self.open.len() >= MAX_DEPTH {
            return Err(Flaw::new(
                span,
                format!("more than {MAX_DEPTH} levels of nesting"),
                "a configuration needs five; check brackets and indentation",
            ));
        }
        let child = self.node(kind, anchor, span)?;
        self.open.push(Open { child, key: None });
        Ok(())
    }

    fn attach(&mut self, child: Child) -> Result<(), Flaw> {
        let Some(open) = self.open.last_mut() else {
            self.root.get_or_insert(child);
            return Ok(());
        };
        let parent = open.child.node.0;
        let key = match &self.nodes[parent].kind {
            Kind::Map(_) => match open.key.take() {
                Some(key) => Some(key),
                None => {
                    let Kind::Scalar { text, .. } = &self.nodes[child.node.0].kind else {
                        return Err(Flaw::new(
                            child.span,
                            "a key must be one word",
                            "write `key: value`; quote a key that holds brackets or colons",
                        ));
                    };
                    open.key = Some((text.clone(), child.span));
                    return Ok(());
                }
            },
            _ => None,
        };
        match (&mut self.nodes[parent].kind, key) {
            (Kind::Seq(items), _) => items.push(child),
            (Kind::Map(entries), Some((key, key_span))) => {
                entries.push(Entry {
                    key,
                    key_span,
                    value: child,
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// At the end of a map: refuses double keys, then lets `<<` fill in what is not there.
    fn merge(&mut self, map: Child) -> Result<(), Flaw> {
        let Kind::Map(entries) = &mut self.nodes[map.node.0].kind else {
            return Ok(());
        };
        let mut entries = std::mem::take(entries);
        let mut seen: HashMap<String, u32> = HashMap::with_capacity(entries.len());
        entries.retain(|entry| match seen.get(&entry.key) {
            Some(first) => {
                self.flaws.push(Flaw::new(
                    entry.key_span,
                    format!("`{}` is here a second time", entry.key),
                    format!("it is already in line {first}; remove one of them"),
                ));
                false
            }
            None => {
                seen.insert(entry.key.clone(), entry.key_span.line);
                true
            }
        });
        if let Some(at) = entries.iter().position(|entry| entry.key == "<<") {
            let from = entries.remove(at);
            let sources = match &self.nodes[from.value.node.0].kind {
                Kind::Seq(items) => items.iter().map(|item| item.node).collect(),
                _ => vec![from.value.node],
            };
            for source in sources {
                let Kind::Map(more) = &self.nodes[source.0].kind else {
                    self.flaws.push(Flaw::new(
                        from.value.span,
                        "`<<` merges keys from a block of keys, and this is none",
                        "give a block its name with `&name` and write `<<: *name`",
                    ));
                    continue;
                };
                for entry in more {
                    if !seen.contains_key(&entry.key) {
                        seen.insert(entry.key.clone(), entry.key_span.line);
                        entries.push(entry.clone());
                    }
                }
            }
            if entries.len() + self.nodes.len() > MAX_NODES {
                return Err(Flaw::new(
                    from.key_span,
                    "`<<` makes this too long",
                    "write less",
                ));
            }
        }
        self.nodes[map.node.0].kind = Kind::Map(entries);
        Ok(())
    }
}
