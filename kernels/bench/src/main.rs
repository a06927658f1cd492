//! Baseline.
use burn::prelude::*;
use burn::tensor::{Distribution, module, ops::ConvOptions};
use std::time::Instant;
fn cpu() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[allow(unsafe_code)]
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}
fn best(f: &mut dyn FnMut()) -> (f64, f64) {
    f();
    let (mut a, mut b) = (f64::MAX, f64::MAX);
    for _ in 0..5 {
        let c = cpu();
        let t = Instant::now();
        f();
        a = a.min(t.elapsed().as_secs_f64());
        b = b.min(cpu() - c);
    }
    (a, b)
}
fn row(name: &str, flops: f64, f: &mut dyn FnMut(), fb: Option<&mut dyn FnMut()>) {
    let (w, c) = best(f);
    let mut l = format!("{{\"name\": \"{name}\", \"fwd\": {:.2}, \"fwd_cpu\": {:.2}", flops / w / 1e9, flops / c / 1e9);
    if let Some(fb) = fb {
        let (w, c) = best(fb);
        l += &format!(", \"fb\": {:.2}, \"fb_cpu\": {:.2}", 3. * flops / w / 1e9, 3. * flops / c / 1e9);
    }
    println!("{l}}}");
}
fn main() {
    let threads: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().unwrap();
    let d = Device::flex();
    let n = Distribution::Normal(0., 1.);
    let a: Vec<Tensor<2>> = (0..6).map(|_| Tensor::random([1024, 1024], n, &d)).collect();
    let mut i = 0;
    row("matmul 1024", 2. * 1024f64.powi(3), &mut || { i = (i + 1) % 3; let _ = a[2 * i].clone().matmul(a[2 * i + 1].clone()); }, None);
    for (name, b, c, h, o, k, s, p, g) in [
        ("3x3 16->16@32 b64", 64, 16, 32, 16, 3, 1, 1, 1), ("3x3 64->64@8 b64", 64, 64, 8, 64, 3, 1, 1, 1), ("3x3 64->64@56 b16", 16, 64, 56, 64, 3, 1, 1, 1),
        ("1x1 256->64@56 b16", 16, 256, 56, 64, 1, 1, 0, 1), ("3x3 512->512@7 b8", 8, 512, 7, 512, 3, 1, 1, 1), ("3x3 128@28 b64", 64, 128, 28, 128, 3, 1, 1, 1),
        ("3x3 256@14 b64", 64, 256, 14, 256, 3, 1, 1, 1), ("3x3 512@7 b64", 64, 512, 7, 512, 3, 1, 1, 1), ("1x1 1024->256@14 b64", 64, 1024, 14, 256, 1, 1, 0, 1),
        ("dw3x3 144@56 b16", 16, 144, 56, 144, 3, 1, 1, 144), ("dw3x3 384@14 b16", 16, 384, 14, 384, 3, 1, 1, 384), ("1x1 64->256@56 b16", 16, 64, 56, 256, 1, 1, 0, 1),
        ("3x3s2 128@56 b16", 16, 128, 56, 128, 3, 2, 1, 1),
    ] {
        let xs: Vec<Tensor<4>> = (0..3).map(|_| Tensor::random([b, c, h, h], n, &d)).collect();
        let w: Tensor<4> = Tensor::random([o, c / g, k, k], n, &d);
        let op = ConvOptions::new([s, s], [p, p], [1, 1], g);
        let ho = (h + 2 * p - k) / s + 1;
        let mut i = 0;
        let mut j = 0;
        row(name, 2. * (b * ho * ho * o * (c / g) * k * k) as f64,
            &mut || { i = (i + 1) % 3; let _ = module::conv2d(xs[i].clone(), w.clone(), None, op.clone()); },
            Some(&mut || { j = (j + 1) % 3; let x = xs[j].clone().autodiff().require_grad(); let w = w.clone().autodiff().require_grad();
              let y = module::conv2d(x.clone(), w.clone(), None, op.clone()); let g = y.backward(); let _ = (x.grad(&g).unwrap(), w.grad(&g).unwrap()); }));
    }
    for (name, r, ci, co) in [("linear 1576x768->3072", 1576, 768, 3072), ("linear 1576x3072->768", 1576, 3072, 768), ("linear 197x768->3072", 197, 768, 3072), ("linear 197x3072->768", 197, 3072, 768), ("linear 64x2048->1000", 64, 2048, 1000)] {
        let xs: Vec<Tensor<2>> = (0..3).map(|_| Tensor::random([r, ci], n, &d)).collect();
        let w: Tensor<2> = Tensor::random([ci, co], n, &d);
        let mut i = 0;
        let mut j = 0;
        row(name, 2. * (r * ci * co) as f64,
            &mut || { i = (i + 1) % 3; let _ = module::linear(xs[i].clone(), w.clone(), None); },
            Some(&mut || { j = (j + 1) % 3; let x = xs[j].clone().autodiff().require_grad(); let w = w.clone().autodiff().require_grad();
              let y = module::linear(x.clone(), w.clone(), None); let g = y.backward(); let _ = (x.grad(&g).unwrap(), w.grad(&g).unwrap()); }));
    }
}
