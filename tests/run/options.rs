//! Options that would do nothing, or something else than they say, are refused; and what a record tells.

use serde_json::Value;

use crate::project::{Project, said};

/// Refused before anything is done: exit code 125, and a record that says why.
#[test]
fn options_that_do_nothing_are_refused() {
    let p = Project::new();
    let wrong = [
        (&["--verify", "--policy", "writeonly"][..], "there are no hits"),
        (&["--verify", "--policy", "disabled"], "there are no hits"),
        (&["--net"], "--net is for a sandbox"),
        (&["--verify", "--dry-run"], "nothing is run"),
        (&["--param", "a=1", "--param", "b=1", "--param", "a=2"], "--param a is given twice"),
        (&["--param", "=1"], "NAME=VALUE"),
        (&["--mtime", "keep", "--as", "link"], "--mtime is for files"),
        (&["--output", "out", "--lock", "out/outfs.lock"], "with which it would be deleted"),
        (&["--output", "lock", "--lock", "./lock"], "with which it would be deleted"),
        (&["--tool", ""], "a program's name is not empty"),
        (&["--task", ""], "a task's name is not empty"),
        (&["--env", ""], "a variable has a name"),
        (&["--no-such-option"], "--no-such-option"),
        (&["--policy", "odd"], "odd"),
    ];
    for (options, why) in wrong {
        let ran = p.run(&[&["--no-inputs"], options].concat(), &["touch", "ran"]);
        assert_eq!((ran.code, ran.record["exit_code"].as_u64()), (125, Some(125)), "{options:?}: {ran:#?}");
        assert!(ran.record["error"].as_str().unwrap_or_default().contains(why), "{options:?}: {ran:#?}");
        ran.says(why);
        assert!(!p.path("ran").exists(), "{options:?}");
    }
    assert_eq!(p.run(&["--input", ""], &["true"]).says("a path is not empty").code, 125);
    assert_eq!(p.run(&["--no-inputs"], &[""]).says("the command is empty").code, 125);
    assert_eq!(
        p.outfs(&["run", "--no-such-option", "--", "echo", "--json"]).stdout,
        b"",
        "that is the command's"
    );
    // Nor is one refused that does something.
    p.run(&["--no-inputs", "--verify", "--policy", "readonly"], &["true"]).is_miss(&["first_run"]);
    p.run(
        &["--no-inputs", "--as", "copy", "--mtime", "keep", "--lock", "a.lock", "--output", "a"],
        &["touch", "a"],
    )
    .kept(true);
}

/// As with GNU's timeout.
#[test]
fn a_time_limit_of_nothing_is_none() {
    let p = Project::new();
    let ran = p.sh(&["--no-inputs", "--timeout", "0"], "sleep 0.1; echo fine");
    assert_eq!((ran.kept(true).code, &ran.stdout[..]), (0, "fine\n"));
}

#[test]
fn a_record_of_a_hit_says_when_it_was_made_and_what_was_not_as_asked() {
    let p = Project::new();
    let run = |options: &[&str]| {
        p.sh(&[&["--task", "t", "--no-inputs", "--output", "o"], options].concat(), "echo 1 > o")
    };
    let before = jiff::Timestamp::now();
    assert_eq!(run(&[]).record["made_at"], Value::Null);
    let after = jiff::Timestamp::now();
    let hit = run(&["--as", "link"]);
    let made: jiff::Timestamp = hit.is_hit().record["made_at"].as_str().unwrap().parse().unwrap();
    assert!(before <= made && made <= after, "{before} {made} {after}");
    let warnings = hit.says("warning: the outputs are files, not links").record["warnings"].to_string();
    assert!(warnings.contains("the outputs are files, not links"), "{hit:#?}");
}

/// Whoever reads records gets the kind of a failure as one.
#[test]
fn failures_of_pages_are_records() {
    let p = Project::new();
    let key = p.sh(&["--no-inputs"], "echo 1").key().to_owned();
    let wrong = [
        (&["events", "--since", "nonsense"][..], "bad_cursor", 2),
        (&["events", "--limit", "10001"], "too_many", 2),
        (&["logs", &key, "--limit", "10001"], "too_many", 2),
        (&["logs", "0123456789"], "not_found", 3),
    ];
    for (args, kind, code) in wrong {
        let out = p.outfs(&[args, &["--json"]].concat());
        let record: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        assert_eq!(
            (&record["kind"], out.status.code()),
            (&kind.into(), Some(code)),
            "{args:?}: {}",
            said(&out)
        );
        assert!(record["error"].as_str().is_some_and(|why| !why.is_empty()), "{record}");
        assert!(p.outfs(args).stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn an_entry_has_no_difference_from_itself() {
    let p = Project::new();
    let key = p.sh(&["--no-inputs"], "echo 1").key().to_owned();
    assert_eq!(p.ok(&["diff", &key, &key]), "no difference\n");
}

/// Who leaves out the `--` is told so, and no usage has what the environment says.
#[test]
fn a_command_without_its_dashes() {
    let p = Project::new();
    let hint = "put '--' before the command: 'outfs run [OPTIONS] -- make'";
    let told = said(&p.outfs(&["run", "--output", "app", "make", "app"]));
    assert!(told.contains(&format!("tip: {hint}")) && !told.contains("--store"), "{told}");
    let out = p.outfs(&["run", "--json", "make", "app"]);
    let record: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(
        (out.status.code(), &record["error"]),
        (Some(125), &format!("unexpected argument 'make' found: {hint}").into())
    );
    for args in [&["run"][..], &["run", "--output", "o"], &["put"]] {
        let told = said(&p.outfs(args));
        assert!(told.contains("Usage: outfs") && !told.contains("--store"), "{told}");
    }
    assert!(!said(&p.outfs(&["run", "--no-such-option"])).contains(hint));
    // It is asked all the same, unless an option says otherwise.
    p.run(&["--no-inputs"], &["true"]).kept(true);
    assert!(p.store.join("format").exists());
    let other = p.dir.path().join("other");
    p.ok(&["--store", other.to_str().unwrap(), "run", "--no-inputs", "--", "true"]);
    assert!(other.join("format").exists());
}
