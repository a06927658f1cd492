//! How long solvers take on one layer, given the sums of its inputs' products.
//!
//! One line for each layer, as JSON: solver, sizes, seconds, and what the pruned layer loses. The layers are closed forms, so
//! that `tests/peers/solver_peer.py` prunes the very same ones with PyTorch.

use std::time::Instant;

use clap::Parser;
use ptsbench::solver::Solver;
use ptsbench::solver::admm::{AdmmW, Alps};
use ptsbench::solver::obc::Obc;
use ptsbench::solver::problem::{Ask, Problem};
use ptsbench::solver::sparsegpt::SparseGpt;

#[derive(Parser)]
#[command(about = "Times solvers on layers of a closed form")]
struct Args {
    /// The solver: sparsegpt, admm_w, alps or obc
    solver: String,
    /// Rows of the weight
    #[arg(long, default_value_t = 512)]
    rows: usize,
    /// Columns of the weight
    #[arg(long, default_value_t = 4608)]
    cols: usize,
    /// Share of zeros
    #[arg(long, default_value_t = 0.8)]
    rate: f64,
}

/// Neighbouring inputs are alike, and some are much larger than others.
fn gram(cols: usize) -> Vec<f64> {
    let scale = |i: usize| 1.0 + (i * 37 % 101) as f64 / 25.0;
    (0..cols * cols)
        .map(|at| {
            let (i, j) = (at / cols, at % cols);
            0.95f64.powi(i.abs_diff(j) as i32) * scale(i) * scale(j)
        })
        .collect()
}

fn weight(rows: usize, cols: usize) -> Vec<f32> {
    let value = |at: usize| {
        let bits = (at as u64 + 1).wrapping_mul(2_654_435_761) % 4_294_967_296;
        bits as f64 / 2_147_483_648.0 - 1.0
    };
    (0..rows * cols).map(|at| value(at) as f32).collect()
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let solver: Box<dyn Solver> = match args.solver.as_str() {
        "sparsegpt" => Box::new(SparseGpt::DEFAULT),
        "admm_w" => Box::new(AdmmW::DEFAULT),
        "alps" => Box::new(Alps::DEFAULT),
        "obc" => Box::new(Obc::DEFAULT),
        other => {
            anyhow::bail!("no solver is called `{other}`; give sparsegpt, admm_w, alps or obc")
        }
    };
    let (gram, weight) = (gram(args.cols), weight(args.rows, args.cols));
    let problem = Problem {
        weight: &weight,
        rows: args.rows,
        cols: args.cols,
        area: 1,
        gram: &gram,
        positions: 1,
    };
    let zeros = (args.rate * weight.len() as f64) as usize;
    let start = Instant::now();
    let solved = solver.solve(&[problem], Ask::Count(zeros))?;
    let line = serde_json::json!({
        "solver": args.solver,
        "rows": args.rows,
        "cols": args.cols,
        "zeros": zeros,
        "seconds": start.elapsed().as_secs_f64(),
        "squared_error": solved.iter().map(|solved| solved.squared_error).sum::<f64>(),
    });
    println!("{line}");
    Ok(())
}
