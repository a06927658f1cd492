//! Runs a lowered kernel on the CPU: its text, with each PTX instruction replaced by a call of `tests/emulator.hpp`, through
//! a C++ compiler.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const EMULATOR: &str = include_str!("../tests/emulator.hpp");

/// A C++ compiler that answers, by `CXX` or the usual name.
pub fn compiler() -> Option<String> {
    let name = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let answers = Command::new(&name)
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success());
    answers.then_some(name)
}

/// A kernel as a program.
pub struct Program {
    path: PathBuf,
    threads: u32,
}

/// What a launch passes.
pub struct Launch {
    /// Cubes.
    pub grid: [u32; 3],
    /// Scalars in the kernel's order.
    pub scalars: Vec<u32>,
    /// Buffers in the kernel's order.
    pub buffers: Vec<Vec<u8>>,
}

impl Program {
    /// Compiles the text of a kernel of `threads` units into `folder`.
    pub fn build(
        compiler: &str,
        folder: &Path,
        name: &str,
        text: &str,
        threads: u32,
    ) -> Result<Self, String> {
        let name: String = name
            .chars()
            .map(|c| if c.is_alphanumeric() { c } else { '_' })
            .collect();
        let (source, path) = (folder.join(format!("{name}.cpp")), folder.join(&name));
        std::fs::write(&source, translate(text)?)
            .map_err(|e| format!("{}: {e}", source.display()))?;
        let run = Command::new(compiler)
            .args(["-std=c++17", "-O1", "-w", "-ffp-contract=off", "-o"])
            .args([&path, &source])
            .output()
            .map_err(|e| format!("{compiler}: {e}"))?;
        if run.status.success() {
            Ok(Self { path, threads })
        } else {
            Err(format!(
                "{compiler}: {}",
                String::from_utf8_lossy(&run.stderr)
            ))
        }
    }

    /// Runs a launch; the buffers afterwards. `seed` decides the order in which threads take turns.
    pub fn run(&self, launch: &Launch, seed: u32) -> Result<Vec<Vec<u8>>, String> {
        let [x, y, z] = launch.grid;
        let mut job = Vec::new();
        let head = [self.threads, x, y, z, seed, launch.scalars.len() as u32];
        for word in head.iter().chain(&launch.scalars) {
            job.extend(word.to_le_bytes());
        }
        for buffer in &launch.buffers {
            job.extend((buffer.len() as u32).to_le_bytes());
            job.extend(buffer);
        }
        let mut child = Command::new(&self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        // The program reads all of its job before it writes anything; one that fails early closes the pipe.
        let written = child.stdin.take().map(|mut pipe| pipe.write_all(&job));
        let run = child.wait_with_output().map_err(|e| e.to_string())?;
        if !run.status.success() {
            return Err(format!(
                "{}: {}",
                run.status,
                String::from_utf8_lossy(&run.stderr)
            ));
        }
        if let Some(Err(e)) = written {
            return Err(format!("the job was not read: {e}"));
        }
        let mut rest = run.stdout.as_slice();
        launch
            .buffers
            .iter()
            .map(|buffer| match rest.split_at_checked(buffer.len()) {
                Some((head, tail)) => {
                    rest = tail;
                    Ok(head.to_vec())
                }
                None => Err("the program wrote too little".to_string()),
            })
            .collect()
    }
}

/// The C++ program of a kernel's text.
fn translate(text: &str) -> Result<String, String> {
    let mut out = String::from(EMULATOR);
    let mut rest = text;
    while let Some(start) = find_asm(rest) {
        out.push_str(&rest[..start]);
        let end = statement_end(&rest[start..]).ok_or("an open asm statement")? + start;
        out.push_str(&statement(&rest[start..end])?);
        rest = &rest[end..];
    }
    out.push_str(rest);
    let out = shared_memory(&out)?;
    let after = out
        .split("extern \"C\"")
        .nth(1)
        .ok_or("no kernel in the text")?;
    let name = after
        .split_once("__launch_bounds__(")
        .and_then(|(_, rest)| rest.split_once(')'));
    let name = name.and_then(|(_, rest)| rest.split_once('('));
    let name = name
        .map(|(name, _)| name.trim())
        .ok_or("a kernel without a name")?;
    Ok(format!(
        "{out}\nint main() {{ return emu::job<info_st>({name}); }}\n"
    ))
}

fn find_asm(text: &str) -> Option<usize> {
    ["asm volatile(", "asm ("]
        .iter()
        .filter_map(|word| text.find(word))
        .min()
}

/// Behind the statement that `text` begins with: its template holds semicolons, what follows does not.
fn statement_end(text: &str) -> Option<usize> {
    let open = text.find('"')? + 1;
    let close = open + text[open..].find('"')?;
    Some(close + text[close..].find(");")? + 2)
}

/// `extern __shared__ ... char NAME[];` becomes a pointer to the emulator's shared memory.
fn shared_memory(text: &str) -> Result<String, String> {
    let Some(start) = text.find("extern __shared__") else {
        return Ok(text.into());
    };
    let end = start + text[start..].find(';').ok_or("an open declaration")? + 1;
    let declared = text[start..end]
        .strip_suffix("[];")
        .ok_or("shared memory of another kind")?;
    let name = declared.rsplit(' ').next().unwrap_or_default();
    Ok(format!(
        "{}char* const {name} = emu::shared;{}",
        &text[..start],
        &text[end..]
    ))
}

/// One asm statement as a call.
fn statement(asm: &str) -> Result<String, String> {
    let bad = || format!("an asm statement of another form: {asm}");
    let open = asm.find('"').ok_or_else(bad)?;
    let close = open + 1 + asm[open + 1..].find('"').ok_or_else(bad)?;
    let template = asm[open + 1..close].replace("\\n", "\n");
    let mut parts = asm[close + 1..].splitn(3, " : ");
    let before = parts.next().ok_or_else(bad)?;
    if !before.trim().is_empty() {
        return Err(bad());
    }
    let outs = operands(parts.next().unwrap_or_default());
    let ins = operands(parts.next().unwrap_or_default());
    let call = instruction(&template)
        .ok_or_else(|| format!("an instruction without an emulation: {template}"))?;
    let values: Vec<String> = ins
        .iter()
        .map(|value| format!("emu::bits({value})"))
        .collect();
    let sets: String = outs
        .iter()
        .enumerate()
        .map(|(i, to)| format!(" emu::set({to}, emu_out[{i}]);"))
        .collect();
    Ok(format!(
        "{{ emu::u64 emu_in[] = {{ {} }}; emu::u64 emu_out[64]; {call} {sets} }}",
        if values.is_empty() {
            "0".into()
        } else {
            values.join(", ")
        }
    ))
}

/// What stands in the parentheses of `"=r"(a), "=r"(b)`, up to the end of the list.
fn operands(list: &str) -> Vec<String> {
    list.split(", \"")
        .filter_map(|operand| {
            let open = operand.find("\"(")? + 2;
            let close = operand[open..].find(')')? + open;
            Some(operand[open..close].to_string())
        })
        .collect()
}

/// The emulator's function for an instruction whose operands come in the order of their numbers.
fn instruction(template: &str) -> Option<String> {
    let list = |from: usize, count: usize| {
        let registers: Vec<String> = (from..from + count).map(|i| format!("%{i}")).collect();
        format!("{{{}}}", registers.join(", "))
    };
    let fixed = match template {
        "{ .reg .u64 window; cvta.to.shared.u64 window, %1; cvt.u32.u64 %0, window; }" => {
            "emu::shared_address(emu_in, emu_out);"
        }
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" => "emu::copy(emu_in, 16);",
        "cp.async.ca.shared.global [%0], [%1], 4, %2;" => "emu::copy(emu_in, 4);",
        "cp.async.commit_group;" => "emu::commit();",
        "ld.shared.u32 %0, [%1];" => "emu::load(emu_in, emu_out, 1);",
        "ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" => "emu::load(emu_in, emu_out, 4);",
        "{ .reg .u16 half; ld.shared.u16 half, [%1]; cvt.u32.u16 %0, half; }" => {
            "emu::load_half(emu_in, emu_out);"
        }
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" => {
            "emu::ldmatrix(emu_in, emu_out, false);"
        }
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" => {
            "emu::ldmatrix(emu_in, emu_out, true);"
        }
        "cvt.rna.tf32.f32 %0, %1;" => "emu::round_tf32(emu_in, emu_out);",
        // Of one proxy alone there is nothing to order.
        "fence.proxy.async.shared::cta;" => ";",
        _ => "",
    };
    if !fixed.is_empty() {
        return Some(fixed.into());
    }
    if let Some(pending) = template.strip_prefix("cp.async.wait_group ") {
        let pending: u32 = pending.strip_suffix(';')?.parse().ok()?;
        return Some(format!("emu::wait({pending});"));
    }
    for (kind, deep) in [("bf16", 16), ("f16", 16), ("tf32", 8)] {
        let upper = kind.to_uppercase();
        let dense = format!(
            "mma.sync.aligned.m16n8k{deep}.row.col.f32.{kind}.{kind}.f32 {}, {}, {}, {};",
            list(0, 4),
            list(4, 4),
            list(8, 2),
            list(10, 4),
        );
        if template == dense {
            return Some(format!("emu::mma<emu::{upper}>(emu_in, emu_out);"));
        }
        for selector in 0..2 {
            let sparse = format!(
                "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.{kind}.{kind}.f32 \n{}, {}, {}, {}, %16, {selector};",
                list(0, 4),
                list(4, 4),
                list(8, 4),
                list(12, 4),
            );
            if template == sparse {
                return Some(format!(
                    "emu::mma_sparse<emu::{upper}, {selector}>(emu_in, emu_out);"
                ));
            }
        }
        let mut lines = vec![
            "{ .reg .b64 b1, b2, b3;".to_string(),
            "add.s64 b1, %80, 2; add.s64 b2, %80, 4; add.s64 b3, %80, 6;".into(),
            "wgmma.fence.sync.aligned;".into(),
        ];
        for (step, (b, scale)) in [("%80", 0), ("b1", 1), ("b2", 1), ("b3", 1)]
            .iter()
            .enumerate()
        {
            lines.push(format!(
                "wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind} {}, {}, {b}, {scale}, 1, 1, 0;",
                list(0, 64), list(64 + 4 * step, 4),
            ));
        }
        let end = [
            "wgmma.commit_group.sync.aligned;",
            "wgmma.wait_group.sync.aligned 0; }",
        ];
        lines.extend(end.map(String::from));
        if template == lines.join("\n") {
            return Some(format!("emu::wgmma<emu::{upper}>(emu_in, emu_out);"));
        }
        let mut lines = vec![
            "{ .reg .b64 b1; add.s64 b1, %73, 4;".to_string(),
            "wgmma.fence.sync.aligned;".into(),
        ];
        for (step, b) in ["%73", "b1"].iter().enumerate() {
            lines.push(format!(
                "wgmma.mma_async.sp.sync.aligned.m64n128k32.f32.{kind}.{kind} {}, {}, {b}, %72, {step}, {step}, 1, 1, 0;",
                list(0, 64), list(64 + 4 * step, 4),
            ));
        }
        lines.extend(end.map(String::from));
        if template == lines.join("\n") {
            return Some(format!("emu::wgmma_sparse<emu::{upper}>(emu_in, emu_out);"));
        }
    }
    None
}
