//! Policies and hosts of different versions of the interface.

use postern_plugins::PluginError;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, Val};
use wasmtime::{Engine, Store};

use super::text::guest_of;
use super::{CONTEXT, built, load, request};

/// A host of version 1.1: the interfaces of 1.0 under that version, each with a function that 1.0 does not have.
fn next_host(engine: &Engine, component: &Component) -> Linker<()> {
    let mut linker = Linker::new(engine);
    for (import, item) in component.component_type().imports(engine) {
        let mut instance = linker.instance(&import.replace("@1.0.0", "@1.1.0")).unwrap();
        instance.func_new("only-in-1-1", |_, _, _, _| Ok(())).unwrap();
        let ComponentItem::ComponentInstance(interface) = item.ty else { panic!("{import} is no interface") };
        for (function, item) in interface.exports(engine) {
            if let ComponentItem::ComponentFunc(_) = item.ty {
                let name = format!("{import}#{function}");
                instance.func_new(function, move |_, _, _, results| answer(&name, results)).unwrap();
            }
        }
    }
    linker
}

/// One find in whatever text, and no configuration.
fn answer(function: &str, results: &mut [Val]) -> wasmtime::Result<()> {
    let hit = [("start", Val::U32(3)), ("end", Val::U32(5)), ("kind", Val::String("email".into()))];
    let hit = Val::Record(hit.map(|(name, value)| (name.to_owned(), value)).into());
    match function {
        "postern:policy/config@1.0.0#get" => results[0] = Val::String("null".into()),
        "postern:policy/detectors@1.0.0#find" => results[0] = Val::Result(Ok(Some(Box::new(Val::List(vec![hit]))))),
        _ => {}
    }
    Ok(())
}

/// As it was built for 1.0.
#[test]
fn a_policy_for_1_0_works_with_a_host_of_1_1() {
    let engine = Engine::default();
    let component = Component::new(&engine, built("redaction")).unwrap();
    let mut store = Store::new(&engine, ());
    let instance = next_host(&engine, &component).instantiate(&mut store, &component).unwrap();
    let redaction = instance.get_export_index(&mut store, None, "postern:policy/redaction@1.1.0").unwrap();
    let find = instance.get_export_index(&mut store, Some(&redaction), "find").unwrap();
    let find = instance.get_func(&mut store, find).unwrap();

    let segment = [("id", Val::U32(7)), ("role", Val::String("user".into())), ("text", Val::String("to a@b".into()))];
    let segment = Val::Record(segment.map(|(name, value)| (name.to_owned(), value)).into());
    let mut found = [Val::Bool(false)];
    find.call(&mut store, &[Val::List(vec![segment])], &mut found).unwrap();
    let Val::Result(Ok(Some(spans))) = &found[0] else { panic!("{found:?}") };
    let Val::List(spans) = &**spans else { panic!("{spans:?}") };
    let Val::Record(span) = &spans[0] else { panic!("{spans:?}") };
    assert_eq!(span[..3], [("segment", 7), ("start", 3), ("end", 5)].map(|(name, n)| (name.to_owned(), Val::U32(n))));
}

const FLUSH: &str = r#"(import "postern:policy/log@VERSION" "flush" (func $flush))"#;
const PLAN: &str = r#"(func (export "postern:policy/caching@VERSION#plan") (param i32) (result i32)
  (call $flush) (i32.const 131072))"#;

fn of_version(version: &str, imports: &str, plan: &str) -> Vec<u8> {
    let next = |wit: &str| {
        let with_flush = wit.replace("write: func(level: level", "flush: func();\n  write: func(level: level");
        with_flush.replace("@1.0.0", &format!("@{version}"))
    };
    let [imports, plan] = [imports, plan].map(|text| text.replace("VERSION", version));
    guest_of(next, "caching-policy", &imports, &plan)
}

#[tokio::test]
async fn a_policy_for_a_later_interface_is_refused_in_words() {
    for version in ["1.1.0", "2.0.0"] {
        let error = load(of_version(version, FLUSH, PLAN)).unwrap_err();
        let name = format!("postern:policy/types@{version}");
        assert!(matches!(&error, PluginError::OtherVersion(made_for) if *made_for == name), "{error}");
        assert!(error.to_string().contains("this Postern offers postern:policy@1.0.0"), "{error}");
        // Also if it imports nothing.
        let plan = PLAN.replace("(call $flush)", "");
        assert!(matches!(load(of_version(version, "", &plan)), Err(PluginError::OtherVersion(_))));
    }
    // A correction of the same version is the same interface.
    let plan = PLAN.replace("(call $flush)", "");
    let policy = load(of_version("1.0.1", "", &plan)).unwrap();
    assert!(policy.plan(&CONTEXT, &request()).await.answer.is_ok());
}

/// One that claims 1.0 and wants more.
#[test]
fn a_function_that_does_not_exist_is_named() {
    let error = load(of_version("1.0.0", FLUSH, PLAN)).unwrap_err();
    assert!(matches!(&error, PluginError::Mismatch(why) if why.contains("flush")), "{error}");
}
