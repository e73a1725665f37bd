//! The table itself.

use super::*;

pub(super) fn table() -> Vec<Row> {
    let (a, b, c) = (short("a"), short("b"), short("c"));
    let forced_reason =
        || one("forced: results are not looked up (--force, or the policy)", json!({ "why": "forced" }));
    let evicted_reason = || {
        one(
            "the entry was evicted at 2026-01-02T03:04:05Z",
            json!({ "why": "evicted", "when": "2026-01-02T03:04:05.678Z" }),
        )
    };
    let rejected = || Found::Rejected { reason: "bad compiler".into() };
    let inputs = |list: &[(&str, &str)]| {
        let list = list.iter().map(|(p, c)| input(p, c)).collect();
        changed(|p| p.set_inputs(list))
    };
    let both = |x: Vec<(String, Value)>, y: Vec<(String, Value)>| [x, y].concat();
    vec![
        // what the store has
        ("a result is a hit", found(held(|_| {})), hit()),
        ("a hit needs no history", Case { history: vec![], ..found(held(|_| {})) }, hit()),
        ("a hit whatever the lock says", Case { lock: Some(None), ..found(held(|_| {})) }, hit()),
        ("a failed run is none", found(held(|h| h.exit_code = 3)), incomplete("exit code 3")),
        ("a killed one", found(held(|h| h.exit_code = 137)), incomplete("exit code 137, as after SIGKILL")),
        (
            "unless failures are results",
            Case { cache_failures: true, ..found(held(|h| h.exit_code = 3)) },
            hit(),
        ),
        (
            "sealed by quiet is none",
            found(held(|h| h.inferred = true)),
            incomplete("sealed by quiet, not by a run"),
        ),
        (
            "sealed by quiet is none with failures either",
            Case { cache_failures: true, ..found(held(|h| h.inferred = true)) },
            incomplete("sealed by quiet, not by a run"),
        ),
        (
            "an output is missing",
            found(held(|h| h.missing = Some("lib".into()))),
            named("the entry lacks the output lib", "output_missing", "path", "lib"),
        ),
        (
            "rejected",
            found(rejected()),
            named("the entry was rejected: bad compiler", "rejected", "reason", "bad compiler"),
        ),
        ("unreadable", found(Found::Unreadable { why: "torn".into() }), unusable("torn")),
        ("evicted", found(evicted()), evicted_reason()),
        (
            "evicted, whatever the history says",
            Case { found: evicted(), ..after(changed(|p| p.cwd.clear())) },
            evicted_reason(),
        ),
        (
            "evicted, whatever the lock says",
            Case { found: evicted(), lock: Some(None), ..never() },
            evicted_reason(),
        ),
        ("failed before", found(failed("exit code 2")), incomplete("exit code 2")),
        ("timed out before", found(failed("timed out after 10s")), incomplete("timed out after 10s")),
        (
            "evicted after it failed",
            found(Found::Nothing {
                evicted: Some("2026-01-02T03:04:05.678Z".parse().unwrap()),
                failed: Some("x".into()),
            }),
            evicted_reason(),
        ),
        // force
        ("forced with a result", forced(found(held(|_| {}))), forced_reason()),
        ("forced without", forced(never()), forced_reason()),
        ("forced and rejected", forced(found(rejected())), forced_reason()),
        // history
        ("the first run", never(), first()),
        (
            "another command",
            after(changed(|p| p.argv = vec!["make".into(), "it's".into()])),
            cmd(r"make 'it'\''s'", "make all"),
        ),
        ("no argument", after(changed(|p| drop(p.argv.pop()))), cmd("make", "make all")),
        (
            "another program under another name is one change",
            after(changed(|p| {
                p.argv[0] = "gmake".into();
                p.program = value_hash(Some(b"gmake"));
            })),
            cmd("gmake all", "make all"),
        ),
        ("the program's content", after(changed(|p| p.program = "00".into())), tool("make")),
        ("a tool's content", after(changed(|p| set(&mut p.tools, "cc", "12"))), tool("cc")),
        (
            "a program that is named as a tool, too, is one change",
            Case {
                now: changed(|p| set(&mut p.tools, "make", "20")),
                ..after(changed(|p| {
                    p.program = "00".into();
                    set(&mut p.tools, "make", "00");
                }))
            },
            tool("make"),
        ),
        ("a tool more", after(changed(|p| p.tools.clear())), newly("program", "tool", "cc")),
        ("a tool less", after(changed(|p| set(&mut p.tools, "ld", "12"))), no_more("program", "tool", "ld")),
        ("a variable's value", after(changed(|p| set(&mut p.env, "CC", "0"))), env("CC")),
        ("a variable that was absent", after(changed(|p| set(&mut p.env, "CC", ABSENT))), env("CC")),
        (
            "a variable that was empty",
            after(changed(|p| set(&mut p.env, "CC", &value_hash(Some(b""))))),
            env("CC"),
        ),
        (
            "a variable that was not declared",
            after(changed(|p| p.env.clear())),
            newly("variable", "env", "CC"),
        ),
        (
            "a variable that is not declared any more",
            after(changed(|p| set(&mut p.env, "LD", ABSENT))),
            no_more("variable", "env", "LD"),
        ),
        ("a secret's value", after(changed(|p| set(&mut p.secrets, "TOKEN", "23"))), env("TOKEN")),
        ("a parameter's value", after(changed(|p| set(&mut p.params, "level", "2"))), param("level")),
        ("a parameter more", after(changed(|p| p.params.clear())), newly("parameter", "params", "level")),
        (
            "a parameter less",
            after(changed(|p| set(&mut p.params, "x", ""))),
            one(
                "the parameter x is not given any more",
                json!({ "why": "params_changed", "name": "x", "removed": true }),
            ),
        ),
        (
            "a task before it more",
            after(changed(|p| p.after.clear())),
            one(
                "it comes after the task gen now",
                json!({ "why": "upstream_rerun", "task": "gen", "new": true }),
            ),
        ),
        (
            "a task before it less",
            after(changed(|p| set(&mut p.after, "lint", "1"))),
            one(
                "it does not come after the task lint any more",
                json!({ "why": "upstream_rerun", "task": "lint", "removed": true }),
            ),
        ),
        (
            "another base",
            after(changed(|p| p.base = [("another".to_owned(), "56".to_owned())].into())),
            vec![other("base another", "base step")],
        ),
        ("other outputs", after(changed(|p| drop(p.outputs.pop()))), outputs()),
        (
            "the task before made something else",
            after(changed(|p| set(&mut p.after, "gen", "34"))),
            upstream("gen"),
        ),
        ("the base was made again", after(changed(|p| set(&mut p.base, "step", "56"))), upstream("step")),
        (
            "the base is called otherwise",
            after(changed(|p| {
                p.base = [("another".to_owned(), "55".to_owned())].into();
                p.params.clear();
            })),
            newly("parameter", "params", "level"),
        ),
        ("there was no base", after(changed(|p| p.base.clear())), vec![other("no base", "a base")]),
        (
            "a result that is read was made again",
            after(changed(|p| set(&mut p.from, "lib", "45"))),
            upstream("dep"),
        ),
        (
            "another result is read there",
            after(changed(|p| {
                set(&mut p.from, "lib", "45");
                set(&mut p.sources, "lib", "another");
            })),
            dep("lib", Some("45"), Some("44")),
        ),
        (
            "a result that is read, too",
            after(changed(|p| {
                p.from.clear();
                p.sources.clear();
            })),
            dep("lib", None, Some("44")),
        ),
        (
            "an input's content",
            after(inputs(&[("sub/a.c", "c"), ("sub/b.c", "b")])),
            dep("sub/a.c", Some(&c), Some(&a)),
        ),
        ("an input more", after(inputs(&[("sub/a.c", "a")])), dep("sub/b.c", None, Some(&b))),
        ("an input more, first in order", after(inputs(&[("sub/b.c", "b")])), dep("sub/a.c", None, Some(&a))),
        (
            "an input less",
            after(inputs(&[("sub/a.c", "a"), ("sub/b.c", "b"), ("sub/c.c", "c")])),
            dep("sub/c.c", Some(&c), None),
        ),
        (
            "an input was renamed",
            after(inputs(&[("sub/a.c", "a"), ("sub/z.c", "b")])),
            both(dep("sub/b.c", None, Some(&b)), dep("sub/z.c", Some(&b), None)),
        ),
        (
            "an input can be executed no more",
            after(changed(|p| {
                let mut program = input("sub/a.c", "a");
                program.kind = Kind::Program;
                p.set_inputs(vec![program, input("sub/b.c", "b")]);
            })),
            dep("sub/a.c", Some(&format!("{a} executable")), Some(&a)),
        ),
        (
            "an input was a symlink",
            after(changed(|p| {
                let mut link = input("sub/a.c", "b");
                link.kind = Kind::Link;
                p.set_inputs(vec![link, input("sub/b.c", "b")]);
            })),
            dep("sub/a.c", Some(&format!("{b} symlink")), Some(&a)),
        ),
        (
            "several things at once, in a fixed order",
            after(changed(|p| {
                set(&mut p.env, "CC", ABSENT);
                p.outputs.clear();
                p.set_inputs(vec![input("sub/b.c", "b")]);
            })),
            [env("CC"), outputs(), dep("sub/a.c", None, Some(&a))].concat(),
        ),
        // what has no reason of its own
        ("another directory", after(changed(|p| p.cwd.clear())), vec![other("directory .", "directory sub")]),
        (
            "another platform",
            after(changed(|p| p.platform = "linux-aarch64".into())),
            vec![other("platform linux-aarch64", "platform linux-x86_64")],
        ),
        (
            "another sandbox, and a variable",
            after(changed(|p| {
                p.sandbox = "bwrap".into();
                p.env.clear();
            })),
            both(newly("variable", "env", "CC"), vec![other("sandbox bwrap", "sandbox none")]),
        ),
        (
            "another sandbox and network",
            after(changed(|p| {
                p.sandbox = "bwrap".into();
                p.network = "none".into();
            })),
            vec![other("sandbox bwrap, network none", "sandbox none, network host")],
        ),
        (
            "inputs of which no list was kept",
            after(changed(|p| {
                p.set_inputs(vec![input("sub/a.c", "c")]);
                p.inputs.clear();
            })),
            vec![mismatch(&changed(|p| p.set_inputs(vec![input("sub/a.c", "c")])))],
        ),
        // which earlier run
        (
            "the nearest run counts",
            Case {
                history: vec![
                    earlier(changed(|p| {
                        p.env.clear();
                        p.params.clear();
                    })),
                    earlier(changed(|p| set(&mut p.env, "CC", "0"))),
                ],
                ..never()
            },
            env("CC"),
        ),
        (
            "a run of the same sandbox counts before a nearer one",
            Case {
                history: vec![
                    earlier(changed(|p| p.sandbox = "bwrap".into())),
                    earlier(changed(|p| {
                        set(&mut p.env, "CC", "0");
                        p.params.clear();
                    })),
                ],
                ..never()
            },
            both(env("CC"), newly("parameter", "params", "level")),
        ),
        (
            "of equally near ones the newest",
            Case {
                history: vec![
                    earlier(changed(|p| p.params.clear())),
                    earlier(changed(|p| set(&mut p.env, "CC", "0"))),
                ],
                ..never()
            },
            newly("parameter", "params", "level"),
        ),
        (
            "fewer changed inputs are nearer",
            Case { history: vec![earlier(inputs(&[])), earlier(inputs(&[("sub/a.c", "a")]))], ..never() },
            dep("sub/b.c", None, Some(&b)),
        ),
        // lock files
        (
            "no lock file",
            Case { lock: Some(None), ..after(parts()) },
            one("there is no lock file yet", json!({ "why": "no_lock_file" })),
        ),
        (
            "not in the lock file",
            Case { lock: Some(Some(None)), ..after(parts()) },
            one("the lock file does not have this task", json!({ "why": "task_not_in_lock" })),
        ),
        (
            "locked by another version of this program",
            Case { other_form: Some(99), ..after(parts()) },
            vec![other("a key of form 99", &format!("a key of form {VERSION}"))],
        ),
        (
            "locked, and not here",
            locked(block(parts(), None)),
            one("the lock file has this key, and the store no entry of it", json!({ "why": "not_in_store" })),
        ),
        ("locked as failed", locked(block(parts(), Some("exit code 1"))), incomplete("exit code 1")),
        (
            "locked with another variable",
            locked(block(changed(|p| p.env.clear()), None)),
            newly("variable", "env", "CC"),
        ),
        (
            "the lock wins over the history",
            Case {
                history: vec![earlier(changed(|p| p.env.clear()))],
                ..locked(block(changed(|p| p.params.clear()), None))
            },
            newly("parameter", "params", "level"),
        ),
        (
            "locked elsewhere",
            locked(block(changed(|p| p.platform = "linux-aarch64".into()), None)),
            vec![other("platform linux-aarch64", "platform linux-x86_64")],
        ),
    ]
}
