use super::*;
use crate::run::tensors::{Tensors, bytes};
use serde_json::json;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use tch::{Device, IndexOp, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Made by `make.py` beside them.
fn of_torch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pth").join(name)
}

/// Every tensor under a key of what was saved.
fn tensors(file: &Checkpoint, key: &str) -> Tensors {
    let views = file.tensors(file.value.get(key).unwrap()).unwrap();
    views.into_iter().map(|(name, view)| (name, file.tensor(view).unwrap())).collect()
}

/// A file with this pickle and one storage, `0`, of 16 bytes.
fn with_pickle(pickle: &[u8], method: CompressionMethod) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut zip = ZipWriter::new(file.reopen().unwrap());
    for (name, bytes) in [("x/data.pkl", pickle), ("x/byteorder", b"little"), ("x/data/0", &[0; 16])] {
        zip.start_file(name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    file
}

fn refused(pickle: &[u8]) -> String {
    let file = with_pickle(pickle, CompressionMethod::Stored);
    let message = format!("{:#}", Checkpoint::open(file.path()).err().expect("refused"));
    assert!(message.starts_with(&file.path().display().to_string()), "{message}");
    message
}

#[test]
fn what_torch_saves_is_read_in_each_of_its_formats() {
    for (name, format) in [("all.pth", 3), ("protocol5.pth", 5), ("legacy.pth", 2)] {
        assert_eq!(Format::of(&of_torch(name)).unwrap(), Format::Checkpoint);
        let file = Checkpoint::open(&of_torch(name)).unwrap();
        let found = tensors(&file, "network_weights");
        let a = Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([2, 3]);
        let mut expected = Tensors::from([
            ("a".into(), a.copy()),
            ("transposed".into(), a.tr()),
            ("row".into(), a.i(1)),
            ("every_second".into(), Tensor::from_slice(&[1f32, 3., 5.])),
            ("parameter".into(), &a + 1),
            ("scalar".into(), Tensor::from(3.5f32)),
            ("empty".into(), Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))),
            ("expanded".into(), Tensor::ones([4], (Kind::Float, Device::Cpu))),
        ]);
        for (_, name, kind) in KINDS.iter().filter(|entry| entry.2 != Kind::Float) {
            expected.insert((*name).into(), Tensor::from_slice(&[0i64, 1, 2]).to_kind(*kind));
        }
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{format}");
        for (name, tensor) in &expected {
            assert_eq!((found[name].size(), found[name].kind()), (tensor.size(), tensor.kind()), "{name}");
            assert_eq!(bytes(&found[name]), bytes(tensor), "{name}");
        }
        // One storage, read once.
        assert_eq!(found["a"].data_ptr(), found["transposed"].data_ptr());
        assert_eq!(found["row"].data_ptr() as usize, found["a"].data_ptr() as usize + 12);

        let momentum = tensors(&file, "optimizer_state");
        assert_eq!(momentum["state.0.momentum_buffer"], Tensor::ones([1, 2], (Kind::Float, Device::Cpu)));
        assert_eq!(
            file.value.get("plan").unwrap().json(),
            json!({
                "none": null, "ints": [1, -2, 300, 70000, 1i64 << 40, -(1i64 << 40)], "float": 0.5, "yes": true, "no": false,
                "tuple": [1, "x"], "size": [2, 3], "set": [7], "text": "Größe", "deep": { "a": [{}, []] },
                "numpy": [0.8, 0.5, -3, true]
            })
        );
        let objects = file.value.get("objects").unwrap();
        for (key, is) in [
            ("huge", "int"),
            ("device", "torch.device"),
            ("path", "pathlib.PurePosixPath"),
            ("space", "argparse.Namespace"),
            ("dtype", "torch.float16"),
            ("bytes", "bytes"),
        ] {
            assert_eq!(objects.get(key).unwrap().kind(), is);
        }
        if let Some(Value::Tensor(view)) = objects.get("unsigned") {
            let message = format!("{:#}", file.tensor(view).unwrap_err());
            assert!(message.contains("uint16"), "{message}");
        }
    }
}

#[test]
fn what_is_written_is_read_again_and_shared_tensors_lie_there_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let weight = Tensor::arange(20_000, (Kind::Float, Device::Cpu)).reshape([100, 200]);
    let turned = weight.tr();
    let half = weight.i(0).to_kind(Kind::Half);
    let tensor = |tensor: &Tensor| Value::Tensor(tensor.shallow_clone());
    let plan = json!({ "a": [1, -70000, 1i64 << 40, 0.5, "text", true, null, { "b": [] }] });
    let value = Value::dict([
        (
            "weights",
            Value::dict([("a", tensor(&weight)), ("b", tensor(&weight)), ("t", tensor(&turned)), ("h", tensor(&half))]),
        ),
        ("plan", Value::from(&plan)),
    ]);
    [at("a.pth"), at("b.pth")].iter().for_each(|path| write(path, &value).unwrap());
    assert_eq!(fs::read(at("a.pth")).unwrap(), fs::read(at("b.pth")).unwrap());
    // Twice its size, since the transposed one is another order of bytes.
    assert!((160_000..164_000).contains(&fs::metadata(at("a.pth")).unwrap().len()));
    let file = Checkpoint::open(&at("a.pth")).unwrap();
    assert_eq!(file.value.get("plan").unwrap().json(), plan);
    let found = tensors(&file, "weights");
    assert_eq!(found["a"].data_ptr(), found["b"].data_ptr());
    for (name, tensor) in [("a", &weight), ("t", &turned), ("h", &half)] {
        assert_eq!(&found[name], tensor, "{name}");
    }
    let message = write(&at("c.pth"), &Value::Opaque("os.system".into())).unwrap_err().to_string();
    assert!(message.contains("os.system") && !at("c.pth").exists(), "{message}");
}

#[test]
fn calls_are_refused_by_name() {
    for (call, names) in [
        (&b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R"[..], "posix.system"),
        (b"c__builtin__\neval\nX\x01\x00\x00\x001\x85R", "builtins.eval"),
        (b"csubprocess\nPopen\n)R", "subprocess.Popen"),
        (b"cbuiltins\ngetattr\ncos\npath\nX\x01\x00\x00\x00a\x86R", "builtins.getattr"),
        // By a call's result, in the arguments of a call that is known, and by the name on the stack.
        (b"ctorch\ndevice\n)R)R", "torch.device"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nNX\x01\x00\x00\x00a\x85Nt\x85R", "argument"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nNX\x01\x00\x00\x00a\x85NtR", "os.system"),
        (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93)R", "os.system"),
        (b"(cos\nsystem\no", "before 2003"),
    ] {
        for pickle in [[b"\x80\x02", call, b"."].concat(), [b"\x80\x02}X\x01\x00\x00\x00a", call, b"s."].concat()] {
            let message = refused(&pickle);
            assert!(message.contains(names), "{names}: {message}");
        }
    }
    // Without a call a class, or an object of it, is a name.
    let pickle = b"\x80\x02](cposix\nsystem\ncos\nX\n)\x81}be.";
    let file = with_pickle(pickle, CompressionMethod::Stored);
    let value = Checkpoint::open(file.path()).unwrap().value;
    assert_eq!(value, Value::List(["posix.system", "os.X"].map(|name| Value::Opaque(name.into())).to_vec()));
}

/// `[storage, offset, size, stride]` as in `_rebuild_tensor_v2`, of a storage `key` said to be of `numel` floats.
fn view(key: u8, numel: &[u8], offset: &[u8], size: &[u8], stride: &[u8]) -> Vec<u8> {
    let storage =
        [b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00", &[key][..], b"N", numel, b"tQ"].concat();
    let arguments = [b"(", &storage[..], offset, b"(", size, b"t(", stride, b"t\x89}t"].concat();
    [b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n", &arguments[..], b"Rs."].concat()
}

#[test]
fn tensors_stay_within_their_storages() {
    const HUGE: &[u8] = b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x40";
    let good = view(b'0', b"K\x04", b"K\x01", b"K\x03", b"K\x01");
    let file = with_pickle(&good, CompressionMethod::Stored);
    let file = Checkpoint::open(file.path()).unwrap();
    assert_eq!(file.tensors(&file.value).unwrap()["a"].size, [3]);
    for (pickle, says) in [
        (view(b'0', b"K\x04", b"K\x02", b"K\x03", b"K\x01"), "of a storage of 4"),
        (view(b'0', b"K\x04", b"J\xff\xff\xff\xff", b"K\x03", b"K\x01"), "from element -1"),
        (view(b'0', b"K\x04", b"K\x00", b"K\x02", b"J\xff\xff\xff\xff"), "strides [-1]"),
        (view(b'0', b"K\x04", b"K\x00", b"K\x02K\x02", b"K\x01"), "[2, 2] with strides [1]"),
        (view(b'0', b"K\x04", b"K\x00", &[HUGE, HUGE].concat(), b"K\x00K\x00"), "strides [0, 0]"),
        (view(b'0', b"K\x04", HUGE, b"K\x02", HUGE), "of a storage of 4"),
        // 4 GiB out of four numbers.
        (view(b'0', b"K\x04", b"K\x00", b"J\x00\x00\x00\x40", b"K\x00"), "strides [0]"),
        (view(b'0', HUGE, b"K\x00", b"K\x02", b"K\x01"), "larger than the file"),
        (view(b'1', b"K\x04", b"K\x00", b"K\x02", b"K\x01"), "x/data/1 is missing"),
        (view(b'0', b"K\x04", b"K\x00", &b"K\x01".repeat(65), &b"K\x01".repeat(65)), "65 axes"),
    ] {
        let message = refused(&pickle);
        assert!(message.contains(says), "{says}: {message}");
    }
    // What the pickle says, the file need not hold.
    let file = with_pickle(&view(b'0', b"K\x03", b"K\x00", b"K\x03", b"K\x01"), CompressionMethod::Stored);
    let file = Checkpoint::open(file.path()).unwrap();
    let message = format!("{:#}", file.tensor(file.tensors(&file.value).unwrap()["a"]).unwrap_err());
    assert!(message.contains("12 bytes expected, 16 found"), "{message}");
    let file = with_pickle(&view(b'0', b"K\x05", b"K\x00", b"K\x05", b"K\x01"), CompressionMethod::Stored);
    let file = Checkpoint::open(file.path()).unwrap();
    let message = format!("{:#}", file.tensor(file.tensors(&file.value).unwrap()["a"]).unwrap_err());
    assert!(message.contains("20 bytes expected, 16 found"), "{message}");
}

#[test]
fn small_files_ask_for_little() {
    let nested = |n: usize| [b"\x80\x02".to_vec(), b"]".repeat(n), b"a".repeat(n - 1), b".".to_vec()].concat();
    let file = with_pickle(&nested(90), CompressionMethod::Stored);
    Checkpoint::open(file.path()).unwrap();
    // A list of two of the list before, thirty times; each in itself; a text of 40 bytes in a list many times over; marks without end.
    let doubled: Vec<u8> = (1..=30u8).flat_map(|i| [b"]q", &[i][..], b"(h", &[i - 1], b"h", &[i - 1], b"e"].concat()).collect();
    let bomb = [b"\x80\x02]q\x00", &doubled[..], b"."].concat();
    let pairs = [b"\x80\x02]q\x00(".to_vec(), b"NN\x86".repeat(1600), b"e".to_vec()].concat();
    let pairs = [pairs, b"ccollections\nOrderedDict\nh\x00\x85R".repeat(1600), b".".to_vec()].concat();
    for (pickle, says) in [
        (nested(100_000), "within each other"),
        (b"\x80\x02]q\x00h\x00a.".to_vec(), "holds itself"),
        (bomb, "steps or values"),
        (pairs, "steps or values"),
        ([b"\x80\x02".to_vec(), b"(".repeat(2_200_000), b".".to_vec()].concat(), "steps or values"),
        (b"\x80\x02X\xff\xff\xff\xff".to_vec(), "ends too early"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(), "ends too early"),
        (b"\x80\x02a.".to_vec(), "a value is missing"),
        (b"\x80\x02h\x07.".to_vec(), "kept as 7"),
        (b"\x80\x09N.".to_vec(), "protocol"),
        (b"\x80\x02\xff.".to_vec(), "0xff"),
        (b"".to_vec(), "ends too early"),
    ] {
        let message = refused(&pickle);
        assert!(message.contains(says), "{says}: {message}");
    }
    let packed = with_pickle(&vec![b'N'; 1 << 24], CompressionMethod::Deflated);
    let message = format!("{:#}", Checkpoint::open(packed.path()).err().unwrap());
    assert!(message.contains("compressed"), "{message}");
}

#[test]
fn long_names_and_repeated_elements_ask_for_little() {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let long = "n".repeat(2000);
    let called = |name: &str, times: usize| {
        [format!("cnumpy.random\n{name}\nq").as_bytes(), b"\x00", &b"h\x00)R0".repeat(times), b"."].concat()
    };
    let storage =
        [b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n", &text(&long)[..], b"X\x03\x00\x00\x00cpuK\x04tQ."].concat();
    // In itself, its first part of many, so that each of a hundred levels would hold them all.
    let itself = [b"]q\x00(h\x00", &b"N".repeat(30_000)[..], b"e."].concat();
    for (pickle, says) in [
        (called(&long, 1), "a name of 2000 bytes"),
        (called(&long[..900], 100_000), "steps or values"),
        ([&text(&long)[..], &text("x"), b"\x93."].concat(), "a name of 2000 bytes"),
        (storage, "a name of 2000 bytes"),
        (itself, "steps or values"),
    ] {
        let message = refused(&[b"\x80\x02", &pickle[..]].concat());
        assert!(message.contains(says) && message.len() < 500, "{says}: {message}");
    }

    // Eight million elements out of one.
    let tensor = view(b'0', b"K\x04", b"K\x00", b"J\x00\x00\x80\x00", b"K\x00");
    let file = with_pickle(&tensor, CompressionMethod::Stored);
    let file = Checkpoint::open(file.path()).unwrap();
    let found = file.tensors(&file.value).unwrap();
    file.check_elements([found["a"]; 2].into_iter()).unwrap();
    let message = file.check_elements([found["a"]; 3].into_iter()).unwrap_err().to_string();
    assert!(message.contains("clone()"), "{message}");

    // Names within dictionaries: one that is long, and many that are so together.
    let tensor = &tensor[b"\x80\x02}X\x01\x00\x00\x00a".len()..tensor.len() - b"s.".len()];
    let children: Vec<u8> = (0..20_000i32).flat_map(|i| [b"J", &i.to_le_bytes()[..], b"h\x00"].concat()).collect();
    for (key, says) in [(&long[..], "a name of 2000 bytes"), (&long[..990], "names take more than")] {
        let pickle = [b"\x80\x02}(", &text("a")[..], tensor, b"q\x00", &text(key), b"}(", &children, b"uu."].concat();
        let file = with_pickle(&pickle, CompressionMethod::Stored);
        let file = Checkpoint::open(file.path()).unwrap();
        let message = format!("{:#}", file.tensors(&file.value).unwrap_err());
        assert!(message.contains(says) && message.len() < 500, "{says}: {message}");
    }
}

#[test]
fn other_files_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    };
    let whole = fs::read(of_torch("all.pth")).unwrap();
    let mut damaged = whole.clone();
    let numbers = [1f32, 2.].map(f32::to_le_bytes).concat();
    let at = whole.windows(numbers.len()).position(|part| part == numbers).unwrap();
    damaged[at] ^= 1;
    let tar = [&[0; 257][..], b"ustar"].concat();
    let safetensors = [&[0x80, 0, 0, 0, 0, 0, 0, 0][..], b"{}"].concat();
    for (name, bytes, format, says) in [
        ("half.pth", &whole[..whole.len() / 2], Format::Checkpoint, "cut off"),
        ("tar.pth", &tar, Format::Checkpoint, "0.1.10"),
        ("pickle.pkl", b"\x80\x04N.", Format::Checkpoint, "torch.save("),
        ("x.safetensors", &safetensors, Format::Other, "0.1.10"),
        ("empty.pth", b"", Format::Other, "0.1.10"),
    ] {
        let path = write(name, bytes);
        assert_eq!(Format::of(&path).unwrap(), format, "{name}");
        let message = format!("{:#}", Checkpoint::open(&path).err().unwrap());
        assert!(message.contains(says) && message.contains(name), "{message}");
    }
    let file = Checkpoint::open(&write("damaged.pth", &damaged)).unwrap();
    let message = format!("{:#}", file.tensor(file.tensors(&file.value).unwrap()["network_weights.a"]).unwrap_err());
    assert!(message.contains("damaged"), "{message}");
    assert!(Format::of(&folder.path().join("none.pth")).is_err());
}
