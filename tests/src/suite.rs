//! Running tests one after the other, and reporting them as `cargo test` does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::error::{Error, Result};
use crate::run_dir::RunDir;

/// A test.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name: `module::what_it_proves`.
    pub name: &'static str,
    /// The test itself.
    pub run: fn(&RunDir) -> Result<()>,
}

/// The tests of a module, by their functions' names.
#[macro_export]
macro_rules! cases {
    ($module:literal: $($function:ident),+ $(,)?) => {
        /// The tests of this module.
        pub(crate) const CASES: &[$crate::suite::Case] = &[
            $($crate::suite::Case { name: concat!($module, "::", stringify!($function)), run: $function }),+
        ];
    };
}

/// Runs the tests that the command line asks for.
pub fn run(cases: impl IntoIterator<Item = Case>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Guests need the machine for themselves; one thread is also what keeps the parent-death signal right.
    arguments.test_threads = Some(1);
    let trials = cases
        .into_iter()
        .map(|case| Trial::ignorable_test(case.name, move || run_case(&case)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run_case(case: &Case) -> Result<Completion, Failed> {
    let dir = RunDir::new().map_err(|error| error.to_string())?;
    let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(&dir)));
    let mut faults = dir.take_complaints();
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(Error::Skipped(reason))) if faults.is_empty() => {
            return Ok(Completion::ignored_with(reason));
        }
        Ok(Err(error)) => faults.insert(0, error.to_string()),
        Err(_) => faults.insert(0, "the test panicked; its message is above".into()),
    }
    if faults.is_empty() {
        return Ok(Completion::Completed);
    }
    faults.push(dir.keep());
    Err(faults.join("\n").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(run: fn(&RunDir) -> Result<()>) -> Option<String> {
        match run_case(&Case { name: "case", run }) {
            Ok(_) => None,
            Err(failed) => {
                let message = failed.message().unwrap_or_default().to_owned();
                let kept = message
                    .split("logs are kept in ")
                    .nth(1)
                    .and_then(|rest| rest.lines().next())
                    .unwrap();
                std::fs::remove_dir_all(kept).unwrap();
                Some(message)
            }
        }
    }

    #[test]
    fn what_cannot_run_is_ignored_with_its_reason() {
        let skipped = run_case(&Case {
            name: "case",
            run: |_| crate::skip!("no {}", "moon"),
        });
        assert!(
            matches!(skipped, Ok(Completion::Ignored { reason: Some(reason) }) if reason == "no moon")
        );
        assert!(matches!(
            run_case(&Case {
                name: "case",
                run: |_| Ok(())
            }),
            Ok(Completion::Completed)
        ));
    }

    #[test]
    fn errors_panics_and_complaints_fail() {
        let error = complaint(|_| {
            crate::check!(1 > 2, "{} is not more", 1);
            Ok(())
        });
        assert!(error.unwrap().starts_with("1 is not more"));
        assert!(
            complaint(|_| std::panic::panic_any(1))
                .unwrap()
                .starts_with("the test panicked")
        );
        let complained = complaint(|dir| {
            dir.complain("the switch crashed".into());
            Ok(())
        });
        assert!(complained.unwrap().starts_with("the switch crashed"));
    }

    #[test]
    fn a_skip_does_not_hide_a_complaint() {
        let hidden = complaint(|dir| {
            dir.complain("the switch crashed".into());
            crate::skip!("no moon")
        });
        assert!(hidden.unwrap().contains("the switch crashed"));
    }
}
