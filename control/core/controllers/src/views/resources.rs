//! Amounts of what a node has and pods ask for.

use dhow_api::Tree;
use dhow_api::quantity::Quantity;
use std::collections::BTreeMap;

/// Amounts of what a node has and pods ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Resources {
    pub(crate) cpu_m: i64,
    pub(crate) memory: i64,
    pub(crate) ephemeral: i64,
    pub(crate) extended: BTreeMap<String, i64>,
}

impl Resources {
    pub(super) fn parse(amounts: &BTreeMap<String, Tree>) -> Self {
        let mut sum = Self::default();
        for (name, amount) in amounts {
            match name.as_str() {
                "cpu" => sum.cpu_m = milli(amount),
                "memory" => sum.memory = whole(amount),
                "ephemeral-storage" => sum.ephemeral = whole(amount),
                "pods" => {}
                other => {
                    sum.extended.insert(other.to_owned(), whole(amount));
                }
            }
        }
        sum
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.cpu_m = self.cpu_m.saturating_add(other.cpu_m);
        self.memory = self.memory.saturating_add(other.memory);
        self.ephemeral = self.ephemeral.saturating_add(other.ephemeral);
        for (name, amount) in &other.extended {
            let held = self.extended.entry(name.clone()).or_default();
            *held = held.saturating_add(*amount);
        }
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        self.cpu_m = self.cpu_m.saturating_sub(other.cpu_m);
        self.memory = self.memory.saturating_sub(other.memory);
        self.ephemeral = self.ephemeral.saturating_sub(other.ephemeral);
        for (name, amount) in &other.extended {
            if let Some(held) = self.extended.get_mut(name) {
                *held = held.saturating_sub(*amount);
            }
        }
    }

    pub(super) fn at_least(&mut self, other: &Self) {
        self.cpu_m = self.cpu_m.max(other.cpu_m);
        self.memory = self.memory.max(other.memory);
        self.ephemeral = self.ephemeral.max(other.ephemeral);
        for (name, amount) in &other.extended {
            let held = self.extended.entry(name.clone()).or_default();
            *held = (*held).max(*amount);
        }
    }
}

fn quantity(amount: &Tree) -> Option<Quantity> {
    match amount {
        Tree::String(text) => Quantity::parse(text).ok(),
        Tree::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

pub(super) fn whole(amount: &Tree) -> i64 {
    quantity(amount).map_or(0, |q| i64::try_from(q.value()).unwrap_or(i64::MAX))
}

fn milli(amount: &Tree) -> i64 {
    quantity(amount).map_or(0, |q| i64::try_from(q.milli()).unwrap_or(i64::MAX))
}
