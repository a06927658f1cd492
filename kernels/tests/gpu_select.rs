//! The one-off GPU kernels (selection, masks, statistics, sums, packed products) on whatever adapter there is; which one
//! is the driver loader's choice (`VK_DRIVER_FILES`).
#![cfg(feature = "gpu")]

use kernels::gpu::check;

#[test]
fn one_off_kernels_agree_with_the_cpu() {
    let client = match kernels::gpu::client::Route::Wgpu.client() {
        Ok(client) => client,
        Err(why) => return println!("skipped: gpu_select: {why}"),
    };
    let mut failed = Vec::new();
    for (name, test) in check::TESTS {
        let start = std::time::Instant::now();
        match check::run(&client, test) {
            Ok(passed) => println!(
                "{name}: {} compared, largest error over bound {:.3}, {:.1} s",
                passed.cases,
                passed.worst,
                start.elapsed().as_secs_f64()
            ),
            Err(why) => {
                println!("{name}: FAILED: {why}");
                failed.push(name);
            }
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}
