//! The one-off GPU kernels (selection, masks, statistics, sums, packed products) on the device that PTSBENCH_TEST_DEVICE
//! names, wgpu unless it says cuda; which adapter wgpu takes is the driver loader's choice (`VK_DRIVER_FILES`).
#![cfg(feature = "gpu")]

use kernels::gpu::check;
use kernels::gpu::client::Route;

#[test]
fn one_off_kernels_agree_with_the_cpu() {
    let route = match std::env::var("PTSBENCH_TEST_DEVICE").as_deref() {
        Ok("cuda") => Route::Cuda,
        _ => Route::Wgpu,
    };
    let client = match route.client() {
        Ok(client) => client,
        Err(why) => return println!("skipped: gpu_select: {why}"),
    };
    let mut failed = Vec::new();
    for (name, test) in check::tests(&client) {
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
