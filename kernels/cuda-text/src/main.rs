fn main() {
    let (device, target) = cuda_text::lower::device();
    for e in cuda_text::catalog::entries(&device, &target) {
        let t = cuda_text::lower::lower(&*e.kernel).unwrap();
        println!("{} shared {}", e.name, t.shared);
        std::fs::write(format!("/tmp/text/{}.cu", e.name.replace(' ', "_")), t.source).unwrap();
    }
}
