//! The files: for each a reader, a name, and how it is made.

use miniz_oxide::deflate::{compress_to_vec, compress_to_vec_zlib};

type Row = (&'static str, &'static str, fn() -> Vec<u8>);

/// All rows; a reader's stand together.
pub const ALL: &[Row] = &[
    ("pickle", "70,000 lists in lists", || {
        [&b"]".repeat(70_000)[..], &b"a".repeat(69_999), b"."].concat()
    }),
    ("pickle", "60 million None", || b"N".repeat(60_000_000)),
    ("pickle", "60 million memo places", || {
        [&b"N"[..], &vec![0x94; 60_000_000]].concat()
    }),
    ("pickle", "60 million copies of one value", || {
        [&b"N"[..], &b"2".repeat(60_000_000)].concat()
    }),
    ("pickle", "60 million marks", || b"(".repeat(60_000_000)),
    (
        "pickle",
        "labels that are one number 1.3 million times",
        || {
            [
                &b"}U\x06labels](K\x01q\x01"[..],
                &b"h\x01".repeat(1_300_000),
                b"es.",
            ]
            .concat()
        },
    ),
    ("pickle", "900,000 empty dictionaries", || {
        [&b"("[..], &b"}".repeat(900_000), b"t."].concat()
    }),
    ("pickle", "20 million letters of a name", || {
        [&b"c"[..], &b"a".repeat(20_000_000), b"\n\n"].concat()
    }),
    ("weights", "checkpoint: 16 million None", || {
        checkpoint(&b"N".repeat(16_000_000))
    }),
    ("weights", "checkpoint: 400,000 shapes", || {
        checkpoint(
            &[
                &b"("[..],
                &b"(K\x01K\x01K\x01K\x01K\x01t".repeat(140_000),
                b"t.",
            ]
            .concat(),
        )
    }),
    ("weights", "checkpoint: 50,000 views of one storage", || {
        let mut pickle = b"\x80\x02}(".to_vec();
        pickle.extend(b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ\x40\x42\x0f\0tQq\x01");
        pickle.extend(b"0ctorch._utils\n_rebuild_tensor_v2\nq\x020");
        for tensor in 0..50_000_u32 {
            pickle.extend(b"X\x05\0\0\0");
            pickle.extend(format!("{tensor:05}").bytes());
            pickle.extend(b"h\x02(h\x01K\0J\x40\x42\x0f\0\x85K\x01\x85tR");
        }
        pickle.extend(b"u.");
        zip(&[
            ("n/data.pkl".to_owned(), pickle),
            ("n/data/0".to_owned(), vec![0; 4_000_000]),
        ])
    }),
    ("weights", "checkpoint: 60,000 members", || {
        let member = |n| (format!("n/data/{n}"), Vec::new());
        zip(&(0..60_000).map(member).collect::<Vec<_>>())
    }),
    ("weights", "safetensors: a shape of 10 million axes", || {
        safetensors(&format!(
            r#"{{"w":{{"dtype":"F32","shape":[0{}],"data_offsets":[0,0]}}}}"#,
            ",0".repeat(10_000_000)
        ))
    }),
    ("weights", "safetensors: 2 million keys", || {
        let keys: Vec<String> = (0..2_000_000).map(|n| format!(r#""{n}":0"#)).collect();
        safetensors(&format!("{{{}}}", keys.join(",")))
    }),
    ("weights", "safetensors: 240,000 empty tensors", || {
        let keys: Vec<String> = (0..240_000)
            .map(|n| format!(r#""{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#))
            .collect();
        safetensors(&format!("{{{}}}", keys.join(",")))
    }),
    ("weights", "safetensors: 200,000 keys that are one", || {
        safetensors(&format!("{{\"a\":0{}}}", ",\"a\":0".repeat(200_000)))
    }),
    ("weights", "safetensors: 10 million nested lists", || {
        safetensors(&"[".repeat(10_000_000))
    }),
    ("weights", "packed: a shape of a million axes", || {
        packed(&format!("[0{}]", ",0".repeat(1_000_000)))
    }),
    ("npz", "a covariance of 5,000 zero features", || {
        statistics(5000)
    }),
    ("npz", "a covariance of 4,096 zero features", || {
        statistics(4096)
    }),
    ("npz", "65,000 arrays", || {
        let member = |n| (format!("{n}.npy"), Vec::new());
        zip(&(0..65_000).map(member).collect::<Vec<_>>())
    }),
    ("matlab", "200 arrays of 16 MB", || {
        let array = matrix_of(3, &[], &vec![0; 16 << 20]);
        let packed = compress_to_vec_zlib(&array, 6);
        let one = [
            &15_u32.to_le_bytes()[..],
            &(packed.len() as u32).to_le_bytes(),
            &packed,
        ]
        .concat();
        matlab(&one.repeat(200))
    }),
    ("matlab", "2 million names of fields", || {
        matlab(&matrix_of(
            2,
            &[b"\x05\0\x04\0\x01\0\0\0"],
            &vec![b'a'; 2_000_000],
        ))
    }),
    ("matlab", "900,000 empty fields", || {
        let mut rest = element(1, b"a");
        rest.extend(b"\x0e\0\0\0\0\0\0\0".repeat(900_000));
        matlab(&matrix(2, 900_000, &[b"\x05\0\x04\0\x20\0\0\0"], &rest))
    }),
    ("coco", "a box of 20 million numbers", || {
        coco(&format!(
            r#"{{"id":1,"image_id":1,"category_id":1,"bbox":[0{}]}}"#,
            ",0".repeat(20_000_000)
        ))
    }),
    ("coco", "a box of 10 million lists", || {
        coco(&format!(
            r#"{{"id":1,"image_id":1,"category_id":1,"bbox":[0{}]}}"#,
            ",[]".repeat(10_000_000)
        ))
    }),
    ("coco", "10 million nested lists", || {
        coco(&format!(
            r#"{{"id":1,"image_id":1,"category_id":1,"bbox":{}"#,
            "[".repeat(10_000_000)
        ))
    }),
    ("coco", "200,000 objects outside of their image", || {
        let row = |id| format!(r#"{{"id":{id},"image_id":1,"category_id":1,"bbox":[-9,-9,0,0]}}"#);
        coco(&(0..200_000).map(row).collect::<Vec<_>>().join(","))
    }),
    ("results", "a box of 20 million numbers", || {
        format!(r#"[{{"bbox":[0{}]}}]"#, ",0".repeat(20_000_000)).into_bytes()
    }),
    ("results", "3 million empty results", || {
        format!("[{{}}{}]", ",{}".repeat(3_000_000)).into_bytes()
    }),
    ("voc", "20,000 attributes", || attributes(20_000)),
    ("voc", "100,000 attributes", || attributes(100_000)),
    ("voc", "500 name spaces, 30,000 elements", || {
        let spaces: String = (0..490).map(|n| format!(" xmlns:a{n}='b'")).collect();
        format!("<annotation{spaces}>{}</annotation>", "<a/>".repeat(30_000)).into_bytes()
    }),
    ("voc", "80,000 nested elements", || b"<a>".repeat(80_000)),
    ("voc", "20,000 nested elements", || {
        [b"<a>".repeat(20_000), b"</a>".repeat(20_000)].concat()
    }),
    ("voc", "40,000 character references", || {
        format!("<annotation>{}</annotation>", "&#65;".repeat(40_000)).into_bytes()
    }),
    ("lmdb", "a page that is its own child", || {
        lmdb(1, 30, false)
    }),
    ("lmdb", "a page with one long key 32,000 times", || {
        lmdb(2, 30_000, false)
    }),
    ("lmdb", "1,000 pages of small keys", || lmdb(2, 100, true)),
    ("classes", "340,000 empty names", || {
        format!(r#"{{"a":[""{}]}}"#, r#","""#.repeat(340_000)).into_bytes()
    }),
    ("picture", "PNG: 89 million pixels, grey, in 1 bit", || {
        png(9450, 9450, 1, 0)
    }),
    ("picture", "PNG: 16 million pixels, RGBA", || {
        png(4096, 4096, 8, 6)
    }),
    ("picture", "PNG: 16 million pixels, RGBA in 16 bits", || {
        png(4096, 4096, 16, 6)
    }),
    (
        "picture",
        "PNG: 64 million pixels, RGBA, as long as it must be",
        || padded(png(8000, 8000, 8, 6), 1_000_100),
    ),
    ("picture", "JPEG: 16 million pixels", || jpeg(4096, 4096, 1)),
    (
        "picture",
        "JPEG: 64 million pixels, as long as it must be",
        || padded(jpeg(8000, 8000, 1), 1_000_100),
    ),
    ("picture", "JPEG: 16 million pixels in 90 scans", || {
        jpeg(4096, 4096, 90)
    }),
    ("picture", "JPEG: 16 million pixels in 5,000 scans", || {
        jpeg(4096, 4096, 5000)
    }),
    (
        "picture",
        "JPEG: the header of 4 billion pixels in scans",
        || {
            let mut bytes = jpeg(65_535, 65_535, 2);
            bytes.truncate(1000);
            bytes
        },
    ),
    (
        "picture",
        "JPEG: 88 million pixels in 90 scans, as long as it must be",
        || padded(jpeg(9400, 9400, 90), 1_400_000),
    ),
    ("picture", "WebP: 268 million pixels", || {
        webp(16_383, 16_383)
    }),
    ("picture", "WebP: 16 million pixels", || webp(4096, 4096)),
    ("picture", "WebP: a frame larger than its picture", || {
        let mut data = b"\x10\0\0\x9d\x01\x2a".to_vec();
        data.extend([16_383_u16.to_le_bytes(), 16_383_u16.to_le_bytes()].concat());
        data.resize(100_000, 0);
        let mut chunks = b"VP8X\x0a\0\0\0\0\0\0\0\x0f\0\0\x0f\0\0".to_vec();
        chunks.extend(b"VP8 ");
        chunks.extend((data.len() as u32).to_le_bytes());
        chunks.extend(data);
        riff(&chunks)
    }),
    (
        "picture",
        "WebP: 60 million pixels, as long as it must be",
        || padded(webp(8000, 7500), 1_000_100),
    ),
    ("records", "128 MiB of zeros", || gzip(&vec![0; 128 << 20])),
    ("records", "40 million lines that are no records", || {
        gzip(&b"{}\n".repeat(40_000_000))
    }),
    ("records", "30 broken records of almost 4 MiB", || {
        let key = "ab".repeat(32);
        let head = format!(r#"{{"schema":2,"key":"{key}","digest":"{key}","cell":[0"#);
        gzip(
            format!("{head}{}]}}\n", ",0".repeat((2 << 20) - 200))
                .repeat(30)
                .as_bytes(),
        )
    }),
];

/// A file and zeros behind it.
fn padded(mut bytes: Vec<u8>, length: usize) -> Vec<u8> {
    bytes.resize(length.max(bytes.len()), 0);
    bytes
}

/// A zip archive of stored members.
fn zip(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for (name, data) in members {
        let at = (bytes.len() as u32).to_le_bytes();
        member(
            &mut bytes,
            &mut directory,
            name,
            (0, data, data.len()),
            crc32fast::hash(data),
            at,
        );
    }
    ended(bytes, &directory, members.len())
}

fn member(
    bytes: &mut Vec<u8>,
    directory: &mut Vec<u8>,
    name: &str,
    (method, data, length): (u16, &[u8], usize),
    checksum: u32,
    at: [u8; 4],
) {
    let mut common = vec![20, 0, 0, 0];
    common.extend(method.to_le_bytes());
    common.extend([0; 4]);
    for word in [checksum, data.len() as u32, length as u32] {
        common.extend(word.to_le_bytes());
    }
    common.extend((name.len() as u16).to_le_bytes());
    common.extend([0, 0]);
    bytes.extend(b"PK\x03\x04");
    bytes.extend(&common);
    bytes.extend(name.bytes());
    bytes.extend(data);
    directory.extend(b"PK\x01\x02\x14\0");
    directory.extend(&common);
    directory.extend([0; 10]);
    directory.extend(at);
    directory.extend(name.bytes());
}

fn ended(mut bytes: Vec<u8>, directory: &[u8], count: usize) -> Vec<u8> {
    let start = bytes.len() as u32;
    let count = (count as u16).to_le_bytes();
    bytes.extend(directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([count, count].concat());
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

fn checkpoint(pickle: &[u8]) -> Vec<u8> {
    zip(&[("n/data.pkl".to_owned(), pickle.to_vec())])
}

fn safetensors(header: &str) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
}

fn packed(shape: &str) -> Vec<u8> {
    safetensors(&format!(
        r#"{{"__metadata__":{{"ptsbench.packed":"{{\"w\":{shape}}}"}},"w.bitmap":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"w.kept":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}}}"#
    ))
}

/// Statistics of `d` features that are all zero, deflated.
fn statistics(d: usize) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, shape, count) in [
        ("mu.npy", format!("({d},)"), d),
        ("sigma.npy", format!("({d}, {d})"), d * d),
    ] {
        let header = format!("{{'descr': '<f8', 'fortran_order': True, 'shape': {shape}, }}\n");
        let mut array = b"\x93NUMPY\x01\0".to_vec();
        array.extend((header.len() as u16).to_le_bytes());
        array.extend(header.bytes());
        array.resize(array.len() + count * 8, 0);
        let at = (bytes.len() as u32).to_le_bytes();
        let packed = compress_to_vec(&array, 6);
        member(
            &mut bytes,
            &mut directory,
            name,
            (8, &packed, array.len()),
            crc32fast::hash(&array),
            at,
        );
    }
    ended(bytes, &directory, 2)
}

fn matlab(elements: &[u8]) -> Vec<u8> {
    let mut bytes = b"MATLAB 5.0".to_vec();
    bytes.resize(124, b' ');
    bytes.extend(b"\0\x01IM");
    bytes.extend(elements);
    bytes
}

/// An element of a kind, padded to eight bytes.
fn element(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// A matrix of a class and a number of items, called `x`: its further elements, and whatever follows.
fn matrix(class: u32, count: u32, elements: &[&[u8]], rest: &[u8]) -> Vec<u8> {
    let mut data = element(6, &[class.to_le_bytes(), [0; 4]].concat());
    data.extend(element(
        5,
        &[count.to_le_bytes(), 1_u32.to_le_bytes()].concat(),
    ));
    data.extend(element(1, b"x"));
    data.extend(elements.concat());
    data.extend(rest);
    element(14, &data)
}

/// A matrix of one item.
fn matrix_of(class: u32, elements: &[&[u8]], data: &[u8]) -> Vec<u8> {
    matrix(class, 1, elements, &element(1, data))
}

fn coco(annotation: &str) -> Vec<u8> {
    format!(
        r#"{{"images":[{{"id":1,"file_name":"status","width":9,"height":9}}],"categories":[{{"id":1,"name":"a"}}],"annotations":[{annotation}]}}"#
    )
    .into_bytes()
}

/// An annotation with so many attributes.
pub fn attributes(count: usize) -> Vec<u8> {
    let attributes: String = (0..count).map(|n| format!(" a{n}=''")).collect();
    format!("<annotation{attributes}/>").into_bytes()
}

/// A database whose root is page 2: a branch whose child is itself, or a leaf whose nodes are all the same one.
fn lmdb(flags: u16, nodes: usize, many: bool) -> Vec<u8> {
    let side = 65_536;
    let (root, pages) = (2_u64, if many { 1000 } else { 3 });
    let mut bytes = vec![0; side * pages];
    let put = |bytes: &mut Vec<u8>, at: usize, value: &[u8]| {
        bytes[at..at + value.len()].copy_from_slice(value);
    };
    for page in 0..2 {
        let at = page * side;
        put(&mut bytes, at + 10, &8_u16.to_le_bytes());
        put(&mut bytes, at + 16, &0xbeef_c0de_u32.to_le_bytes());
        put(&mut bytes, at + 20, &1_u32.to_le_bytes());
        put(&mut bytes, at + 40, &(side as u32).to_le_bytes());
        put(&mut bytes, at + 88 + 32, &(nodes as u64).to_le_bytes());
        put(&mut bytes, at + 88 + 40, &root.to_le_bytes());
        put(&mut bytes, at + 88 + 48, &(pages as u64 - 1).to_le_bytes());
    }
    let at = side * root as usize;
    put(&mut bytes, at + 10, &flags.to_le_bytes());
    put(&mut bytes, at + 12, &(16 + 2 * nodes as u16).to_le_bytes());
    let node = 16 + 2 * nodes;
    for place in 0..nodes {
        put(
            &mut bytes,
            at + 16 + 2 * place,
            &(node as u16).to_le_bytes(),
        );
    }
    // Of a branch the low half of the child's page, of a leaf the length of no value; then the key, as long as it can be.
    let child = if flags == 1 { root as u16 } else { 0 };
    let key = if many { 8 } else { side - node - 8 };
    put(&mut bytes, at + node, &child.to_le_bytes());
    put(&mut bytes, at + node + 6, &(key as u16).to_le_bytes());
    bytes
}

/// A black PNG; colour 0 is grey, 6 has alpha.
fn png(width: u32, height: u32, depth: u8, colour: u8) -> Vec<u8> {
    let bits = usize::from(depth) * if colour == 6 { 4 } else { 1 };
    let row = 1 + (width as usize * bits).div_ceil(8);
    let data = compress_to_vec_zlib(&vec![0; row * height as usize], 6);
    let mut head = [width.to_be_bytes(), height.to_be_bytes()].concat();
    head.extend([depth, colour, 0, 0, 0]);
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", head), (b"IDAT", data), (b"IEND", Vec::new())] {
        let body = [&kind[..], &data].concat();
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(&body);
        bytes.extend(crc32fast::hash(&body).to_be_bytes());
    }
    bytes
}

/// A grey JPEG, progressive where it has more than one scan; those after the first only say that nothing changes.
pub fn jpeg(width: u16, height: u16, scans: usize) -> Vec<u8> {
    let blocks = usize::from(width).div_ceil(8) * usize::from(height).div_ceil(8);
    let mut bytes = b"\xff\xd8\xff\xdb\0\x43\0".to_vec();
    bytes.extend([1; 64]);
    bytes.extend([0xff, if scans > 1 { 0xc2 } else { 0xc0 }, 0, 11, 8]);
    bytes.extend(height.to_be_bytes());
    bytes.extend(width.to_be_bytes());
    bytes.extend([1, 1, 0x11, 0]);
    // One code of one bit each: no difference, and the end of the block or, of progressive ones, of 2^14 and more.
    for (class, symbol) in [(0x00, 0x00), (0x10, if scans > 1 { 0xe0 } else { 0 })] {
        bytes.extend([0xff, 0xc4, 0, 20, class, 1]);
        bytes.extend([0; 15]);
        bytes.push(symbol);
    }
    let scan = |bytes: &mut Vec<u8>, first: u8, last: u8, data: usize| {
        bytes.extend([0xff, 0xda, 0, 8, 1, 1, 0, first, last, 0]);
        bytes.resize(bytes.len() + data, 0);
    };
    if scans == 1 {
        scan(&mut bytes, 0, 63, (2 * blocks).div_ceil(8));
    } else {
        scan(&mut bytes, 0, 0, blocks.div_ceil(8));
        for _ in 1..scans {
            scan(&mut bytes, 1, 63, blocks.div_ceil(1 << 14) * 2);
        }
    }
    bytes.extend(b"\xff\xd9");
    bytes
}

/// A lossless WebP of one colour: five codes of one symbol, and no bits for its pixels.
fn webp(width: u32, height: u32) -> Vec<u8> {
    let mut bits: Vec<bool> = Vec::new();
    let mut put = |value: u32, count: u32| bits.extend((0..count).map(|bit| value >> bit & 1 == 1));
    put(0x2f, 8);
    put(width - 1, 14);
    put(height - 1, 14);
    // Alpha is used, version 0, no transform, no colour cache, one group of codes.
    put(1, 1);
    put(0, 3);
    put(0, 3);
    for _ in 0..5 {
        // Simple, one symbol, which takes one bit: 0.
        put(1, 1);
        put(0, 3);
    }
    let mut data: Vec<u8> = bits
        .chunks(8)
        .map(|bits| {
            bits.iter()
                .rev()
                .fold(0, |byte, &bit| byte << 1 | u8::from(bit))
        })
        .collect();
    data.resize(data.len() + 16, 0);
    data.resize(data.len().next_multiple_of(2), 0);
    let mut chunk = b"VP8L".to_vec();
    chunk.extend((data.len() as u32).to_le_bytes());
    chunk.extend(data);
    riff(&chunk)
}

/// A gzip file without a name.
fn gzip(data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    bytes.extend(compress_to_vec(data, 6));
    bytes.extend(crc32fast::hash(data).to_le_bytes());
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes
}

fn riff(chunks: &[u8]) -> Vec<u8> {
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((chunks.len() as u32 + 4).to_le_bytes());
    bytes.extend(b"WEBP");
    bytes.extend(chunks);
    bytes
}
