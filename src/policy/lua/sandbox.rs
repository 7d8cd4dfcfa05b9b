//! A VM that a script cannot leave: few libraries, guards around what ignores the interrupt, limits, and read-only
//! tables. The order matters: everything is put in place first, then the sandbox closes.

use std::sync::{Arc, OnceLock};

use mlua::chunk::ChunkMode;
use mlua::{Function, Lua, LuaOptions, StdLib, Table, VmState};

use super::inspect::Inspection;
use super::meter::Meter;
use super::program;
use super::surface::Host;
use super::value;

pub(super) const PRELUDE_NAME: &str = "usher";
const PRELUDE: &str = include_str!("prelude.luau");
const GUARDS: &str = include_str!("guards.luau");

/// What the library flags leave behind and no policy needs. `require` would read files, `loadstring` compiles without
/// limits, `getfenv` and `setfenv` undo the sandbox's fast paths, the others are not reproducible or print.
const REMOVED: [&str; 8] =
    ["require", "loadstring", "getfenv", "setfenv", "newproxy", "gcinfo", "print", "collectgarbage"];

/// A closed VM with the function of the prelude that makes a call.
pub(crate) struct Sandbox {
    pub(crate) lua: Lua,
    pub(crate) invoke: Function,
    /// What the prelude knows of who is there.
    pub(crate) shown: Table,
    /// The texts that a call gives to `usher.explain`. They stay in the VM until somebody asks.
    pub(crate) said: Table,
}

impl Sandbox {
    /// Builds a VM. `extend` may add to the `usher` table before it is frozen.
    pub(crate) fn new(
        host: &Arc<Host>,
        memory: usize,
        extend: impl FnOnce(&Lua, &Table) -> mlua::Result<()>,
    ) -> mlua::Result<Self> {
        let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH | StdLib::BIT | StdLib::UTF8;
        let lua = Lua::new_with(libraries, LuaOptions::default())?;
        let globals = lua.globals();
        for name in REMOVED {
            globals.raw_remove(name)?;
        }
        let settings = value::from_map(&lua, &host.environment.settings)?;
        let [prelude, guards] = bytecode()?;
        let functions = host.table(&lua)?;
        let said = lua.create_table()?;
        functions.raw_set("said", &said)?;
        let shown = lua.create_table_with_capacity(0, 3)?;
        functions.raw_set("shown", &shown)?;
        let (invoke, usher): (Function, Table) =
            load(&lua, PRELUDE_NAME, prelude)?.call((functions.clone(), settings))?;
        load(&lua, PRELUDE_NAME, guards)?.call::<()>(functions)?;
        extend(&lua, &usher)?;
        usher.set_readonly(true);
        globals.raw_set("usher", usher)?;
        lua.sandbox(true)?;
        lua.set_memory_limit(memory)?;
        let meter = host.meter.clone();
        lua.set_interrupt(move |lua| interrupt(lua, &meter));
        Ok(Self { lua, invoke, shown, said })
    }
}

/// Loads bytecode that this process compiled; nothing else may come here.
pub(crate) fn load(lua: &Lua, file: &str, bytecode: &[u8]) -> mlua::Result<Function> {
    lua.load(bytecode).set_name(format!("@{file}")).set_mode(ChunkMode::Binary).into_function()
}

fn interrupt(lua: &Lua, meter: &Meter) -> mlua::Result<VmState> {
    match meter.safepoint() {
        None => Ok(VmState::Continue),
        Some(kind) => {
            meter.stopped_at(|| script_line(lua));
            Err(mlua::Error::runtime(kind.label()))
        }
    }
}

/// The line of the script that is running, below any function of the prelude. It only reads the call stack, which is
/// all that is safe inside an interrupt.
pub(super) fn script_line(lua: &Lua) -> Option<u32> {
    (0..16).find_map(|level| {
        let line = lua.inspect_stack(level, |frame| {
            let ours = frame.source().short_src.is_none_or(|file| file == PRELUDE_NAME);
            if ours { None } else { frame.current_line() }
        });
        line.flatten().and_then(|line| u32::try_from(line).ok())
    })
}

/// The prelude and the guards.
fn bytecode() -> mlua::Result<[&'static [u8]; 2]> {
    type Compiled = Result<Vec<u8>, String>;
    static BYTECODE: OnceLock<[Compiled; 2]> = OnceLock::new();
    let compile = |text| program::compile(PRELUDE_NAME, text, Inspection::None).map_err(|e| e.to_string());
    let [prelude, guards] = BYTECODE.get_or_init(|| [PRELUDE, GUARDS].map(compile));
    let compiled = |one: &'static Compiled| one.as_deref().map_err(mlua::Error::runtime);
    Ok([compiled(prelude)?, compiled(guards)?])
}
