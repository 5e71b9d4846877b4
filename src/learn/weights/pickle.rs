//! Pickles as data: the opcodes of Python's protocols 2 to 5, read without ever looking up or calling what they name.
//!
//! In: the bytes of a pickle. Out: its root [`Value`] and the [`Heap`] that containers lie in. Torch's own constructors become
//! tensors and dictionaries; anything else that a pickle would make is an inert [`Value::Object`] that keeps its class's name,
//! since checkpoints hold optimiser options, functions and hyper-parameters beside the weights.
//! Invariants: every opcode reads at least one byte and makes at most one value, so memory is bounded by the pickle's length;
//! nothing recurses. Names of functions that would run a command are refused, though nothing here could run them: the user may
//! load the file in Python next.
//! Source: CPython's Lib/pickletools.py; torch/_utils.py for the constructors.

use std::collections::HashMap;
use std::rc::Rc;

/// Why a pickle was not read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PickleError {
    /// It ends too early.
    #[error("the pickle ends in the middle of a value")]
    Truncated,
    /// An opcode that no checkpoint needs, or no pickle at all.
    #[error("byte {at} of the pickle is 0x{opcode:02x}, which is no opcode that weights need")]
    Opcode {
        /// The byte.
        opcode: u8,
        /// Its place.
        at: usize,
    },
    /// An opcode that finds something else than it needs.
    #[error("the pickle is damaged at byte {at}: {what}")]
    Damaged {
        /// The opcode's place.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// It names a function that runs commands or code.
    #[error(
        "the pickle asks Python to call `{name}`: loading this file in Python would run a command or code of its choice"
    )]
    Refused {
        /// Module and function.
        name: String,
    },
}

/// A value of a pickle. Containers lie in the heap, so that a value is cheap to copy and a cycle does no harm.
#[derive(Clone, Debug)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of 64 bits.
    Int(i64),
    /// A float.
    Float(f64),
    /// Text.
    Text(Rc<str>),
    /// A tuple or list.
    Sequence(usize),
    /// A dictionary, ordered or not.
    Dict(usize),
    /// A name: `module.function`.
    Global(Rc<str>),
    /// A storage.
    Storage(Rc<Storage>),
    /// A view of a storage.
    Tensor(Rc<TensorView>),
    /// An instance of something else, by its class's name.
    Object(Rc<str>),
}

/// Where a tensor's bytes are.
#[derive(Debug)]
pub struct Storage {
    /// Torch's name of the type: `FloatStorage`, ...
    pub kind: Rc<str>,
    /// Name of the entry below `data/`.
    pub key: Rc<str>,
    /// Elements.
    pub elements: usize,
}

/// A tensor: a view of a storage, offset and strides in elements.
#[derive(Debug)]
pub struct TensorView {
    /// Its storage.
    pub storage: Rc<Storage>,
    /// First element.
    pub offset: usize,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// Steps along the axes.
    pub strides: Vec<usize>,
}

/// The containers.
#[derive(Debug, Default)]
pub struct Heap {
    /// Tuples and lists.
    pub sequences: Vec<Vec<Value>>,
    /// Dictionaries, in the order in which they were filled.
    pub dicts: Vec<Vec<(Value, Value)>>,
}

impl Heap {
    fn sequence(&mut self, items: Vec<Value>) -> Value {
        self.sequences.push(items);
        Value::Sequence(self.sequences.len() - 1)
    }

    fn dict(&mut self) -> Value {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    /// A value in a few words.
    pub fn describe(&self, value: &Value) -> String {
        match value {
            Value::None => "None".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::Text(text) if text.chars().count() <= 40 => format!("{text:?}"),
            Value::Text(_) => "text".to_owned(),
            Value::Sequence(at) => format!("list of {}", self.sequences[*at].len()),
            Value::Dict(at) => format!("dictionary of {}", self.dicts[*at].len()),
            Value::Global(name) => format!("the name {name}"),
            Value::Storage(_) => "storage".to_owned(),
            Value::Tensor(tensor) => format!("tensor {:?}", tensor.shape),
            Value::Object(class) => format!("object of {class}"),
        }
    }
}

/// Modules of Python whose mention in a pickle means harm.
const HARMFUL_MODULES: [&str; 16] = [
    "os",
    "posix",
    "nt",
    "subprocess",
    "sys",
    "pty",
    "socket",
    "shutil",
    "runpy",
    "importlib",
    "code",
    "ctypes",
    "commands",
    "webbrowser",
    "multiprocessing",
    "asyncio",
];
/// The same, of `builtins`.
const HARMFUL_BUILTINS: [&str; 9] = [
    "eval",
    "exec",
    "execfile",
    "compile",
    "open",
    "__import__",
    "getattr",
    "breakpoint",
    "input",
];

fn harmful(module: &str, name: &str) -> bool {
    let package = module.split('.').next().unwrap_or(module);
    let builtin = matches!(module, "builtins" | "__builtin__") && HARMFUL_BUILTINS.contains(&name);
    builtin || HARMFUL_MODULES.contains(&package)
}

/// Reads a pickle.
///
/// # Errors
/// Bytes that are no pickle, end too early or name a harmful function.
pub fn read(bytes: &[u8]) -> Result<(Value, Heap), PickleError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        start: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        heap: Heap::default(),
    };
    let root = machine.run()?;
    Ok((root, machine.heap))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the opcode at work begins.
    start: usize,
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    heap: Heap,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Value, PickleError> {
        loop {
            self.start = self.at;
            let opcode = self.byte()?;
            if opcode == b'.' {
                return self.pop();
            }
            if let Some(value) = self.plain(opcode)? {
                self.stack.push(value);
            } else if !self.container(opcode)? && !self.construct(opcode)? {
                return Err(PickleError::Opcode { opcode, at: self.start });
            }
        }
    }

    /// Opcodes that push what their own bytes say.
    fn plain(&mut self, opcode: u8) -> Result<Option<Value>, PickleError> {
        Ok(Some(match opcode {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(self.byte()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            0x8a => self.long()?,
            b'G' => Value::Float(f64::from_be_bytes(self.array()?)),
            b'X' | b'T' | b'B' => {
                let length = u32::from_le_bytes(self.array()?) as usize;
                self.text(length)?
            }
            0x8c | b'U' | b'C' => {
                let length = self.byte()?.into();
                self.text(length)?
            }
            b'h' => {
                let key = self.byte()?.into();
                self.recall(key)?
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                global(module, name)?
            }
            _ => return Ok(None),
        }))
    }

    /// Opcodes that build tuples, lists and dictionaries, and those that manage stack and memo.
    fn container(&mut self, opcode: u8) -> Result<bool, PickleError> {
        match opcode {
            0x80 => {
                self.byte()?; // The protocol's number: its opcodes speak for themselves.
            }
            0x95 => {
                self.take(8)?; // A frame's length: of use to those who read piece by piece.
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.since_mark()?;
            }
            b'q' => {
                let key = self.byte()?.into();
                self.remember(key)?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b')' | b']' | 0x8f => self.push_sequence(Vec::new()),
            b't' | b'l' | 0x91 => {
                let items = self.since_mark()?;
                self.push_sequence(items);
            }
            0x85..=0x87 => {
                let items = self.last(usize::from(opcode - 0x84))?;
                self.push_sequence(items);
            }
            b'a' => {
                let items = self.last(1)?;
                self.extend(items)?;
            }
            b'e' | 0x90 => {
                let items = self.since_mark()?;
                self.extend(items)?;
            }
            b'}' => {
                let dict = self.heap.dict();
                self.stack.push(dict);
            }
            b's' => {
                let items = self.last(2)?;
                self.set_items(items)?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set_items(items)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Opcodes that Python would make objects with.
    fn construct(&mut self, opcode: u8) -> Result<bool, PickleError> {
        let made = match opcode {
            0x93 => match &self.last(2)?[..] {
                [Value::Text(module), Value::Text(name)] => global(module, name)?,
                _ => return self.damaged("a name that is not text"),
            },
            b'Q' => {
                let id = self.pop()?;
                self.storage(&id)?
            }
            b'R' => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(&callable, &arguments)?
            }
            0x81 => {
                let (_, class) = (self.pop()?, self.pop()?);
                self.instance(&class)
            }
            0x92 => {
                let class = self.last(3)?.swap_remove(0);
                self.instance(&class)
            }
            b'b' => {
                // Attributes of an object, such as a state dictionary's versions: the object stays as it is.
                self.pop()?;
                self.pop()?
            }
            _ => return Ok(false),
        };
        self.stack.push(made);
        Ok(true)
    }

    fn instance(&mut self, class: &Value) -> Value {
        match class {
            Value::Global(name) if &**name == "collections.OrderedDict" => self.heap.dict(),
            Value::Global(name) => Value::Object(name.clone()),
            _ => Value::Object("an unnamed class".into()),
        }
    }

    fn call(&mut self, callable: &Value, arguments: &Value) -> Result<Value, PickleError> {
        let Value::Global(name) = callable else {
            return Ok(Value::Object("an unnamed function".into()));
        };
        let arguments = match arguments {
            Value::Sequence(at) => &self.heap.sequences[*at],
            _ => return self.damaged("arguments that are no tuple"),
        };
        match (&**name, &arguments[..]) {
            ("collections.OrderedDict", []) => Ok(self.heap.dict()),
            (
                "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor",
                [storage, offset, shape, strides, ..],
            ) => {
                let (Value::Storage(storage), Value::Int(offset)) = (storage, offset) else {
                    return self.damaged("a tensor without a storage");
                };
                let Ok(offset) = usize::try_from(*offset) else {
                    return self.damaged("a negative offset");
                };
                let (storage, shape, strides) = (storage.clone(), self.sizes(shape)?, self.sizes(strides)?);
                if shape.len() != strides.len() {
                    return self.damaged("a tensor with other strides than axes");
                }
                Ok(Value::Tensor(Rc::new(TensorView {
                    storage,
                    offset,
                    shape,
                    strides,
                })))
            }
            ("torch._utils._rebuild_parameter", [data, ..]) => Ok(data.clone()),
            ("torch.Size", [sizes]) => Ok(sizes.clone()),
            _ => Ok(Value::Object(name.clone())),
        }
    }

    /// `("storage", type, key, place, elements)`.
    fn storage(&self, id: &Value) -> Result<Value, PickleError> {
        let Value::Sequence(at) = id else {
            return self.damaged("a storage without its description");
        };
        match &self.heap.sequences[*at][..] {
            [
                Value::Text(word),
                Value::Global(kind),
                Value::Text(key),
                _,
                Value::Int(elements),
                ..,
            ] if &**word == "storage" && *elements >= 0 => Ok(Value::Storage(Rc::new(Storage {
                kind: kind.rsplit('.').next().unwrap_or(kind).into(),
                key: key.clone(),
                elements: *elements as usize,
            }))),
            _ => self.damaged("a storage with another description"),
        }
    }

    fn sizes(&self, value: &Value) -> Result<Vec<usize>, PickleError> {
        let Value::Sequence(at) = value else {
            return self.damaged("sizes that are no tuple");
        };
        let size = |value: &Value| match value {
            Value::Int(size) if *size >= 0 => Ok(*size as usize),
            _ => self.damaged("a size that is no count"),
        };
        self.heap.sequences[*at].iter().map(size).collect()
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<(), PickleError> {
        let dict = match self.stack.last() {
            Some(Value::Dict(at)) => &mut self.heap.dicts[*at],
            Some(Value::Object(_)) => return Ok(()),
            _ => return self.damaged("items without a dictionary"),
        };
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            let Some(value) = items.next() else {
                return self.damaged("a key without a value");
            };
            dict.push((key, value));
        }
        Ok(())
    }

    fn extend(&mut self, items: Vec<Value>) -> Result<(), PickleError> {
        match self.stack.last() {
            Some(Value::Sequence(at)) => self.heap.sequences[*at].extend(items),
            Some(Value::Object(_)) => {}
            _ => return self.damaged("items without a list"),
        }
        Ok(())
    }

    fn push_sequence(&mut self, items: Vec<Value>) {
        let sequence = self.heap.sequence(items);
        self.stack.push(sequence);
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, PickleError> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => self.damaged("a mark is missing"),
        }
    }

    fn last(&mut self, count: usize) -> Result<Vec<Value>, PickleError> {
        match self.stack.len().checked_sub(count) {
            Some(at) => Ok(self.stack.split_off(at)),
            None => self.damaged("the stack is empty"),
        }
    }

    fn pop(&mut self) -> Result<Value, PickleError> {
        match self.stack.pop() {
            Some(value) => Ok(value),
            None => self.damaged("the stack is empty"),
        }
    }

    fn remember(&mut self, key: u32) -> Result<(), PickleError> {
        match self.stack.last() {
            Some(value) => {
                self.memo.insert(key, value.clone());
                Ok(())
            }
            None => self.damaged("the stack is empty"),
        }
    }

    fn recall(&self, key: u32) -> Result<Value, PickleError> {
        match self.memo.get(&key) {
            Some(value) => Ok(value.clone()),
            None => self.damaged("a value is recalled that was not remembered"),
        }
    }

    fn damaged<T>(&self, what: &'static str) -> Result<T, PickleError> {
        Err(PickleError::Damaged { at: self.start, what })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], PickleError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or(PickleError::Truncated)?;
        self.at += count;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were asked for"))
    }

    /// Text; bytes that are none are kept by their readable part, since no weight has such a name.
    fn text(&mut self, length: usize) -> Result<Value, PickleError> {
        Ok(Value::Text(String::from_utf8_lossy(self.take(length)?).into()))
    }

    /// An integer of up to 255 bytes; those above 64 bits are no counts of ours.
    fn long(&mut self) -> Result<Value, PickleError> {
        let length = self.byte()?.into();
        let bytes = self.take(length)?;
        if length > 8 {
            return Ok(Value::Object("a large integer".into()));
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) {
            0xff
        } else {
            0
        };
        let mut all = [fill; 8];
        all[..length].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(all)))
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').ok_or(PickleError::Truncated)?;
        let line = self.take(length)?;
        self.at += 1;
        match std::str::from_utf8(line) {
            Ok(line) => Ok(line),
            Err(_) => self.damaged("a name that is not text"),
        }
    }
}

fn global(module: &str, name: &str) -> Result<Value, PickleError> {
    let full = format!("{module}.{name}");
    if harmful(module, name) {
        return Err(PickleError::Refused { name: full });
    }
    Ok(Value::Global(full.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_values_are_read() {
        // pickle.dumps({"a": [1, -2, 2**40, 0.5, None, True], "b": ("x",)}, 2)
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xff\x8a\x06\x00\x00\x00\x00\x00\x01G?\xe0\
                      \x00\x00\x00\x00\x00\x00N\x88eX\x01\x00\x00\x00bq\x03X\x01\x00\x00\x00xq\x04\x85q\x05u.";
        let (root, heap) = read(bytes).unwrap();
        let Value::Dict(at) = root else { panic!("{root:?}") };
        let values: Vec<String> = heap.dicts[at].iter().map(|(_, value)| heap.describe(value)).collect();
        assert_eq!(values, ["list of 6", "list of 1"]);
        let list: Vec<String> = heap.sequences[0].iter().map(|value| heap.describe(value)).collect();
        assert_eq!(list, ["1", "-2", "1099511627776", "0.5", "None", "true"]);
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_an_answer_and_no_panic() {
        let bytes = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(X\x01\x00\x00\x00aK\x01\x85s}(h\x01K\x02ub.";
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            for value in 0..=255 {
                let mut broken = bytes.to_vec();
                broken[at] = value;
                let _ = read(&broken);
            }
        }
    }

    #[test]
    fn what_would_run_code_is_refused_and_what_would_not_is_inert() {
        for name in [
            "os\nsystem",
            "posix\nsystem",
            "subprocess\nPopen",
            "builtins\neval",
            "os.path\njoin",
        ] {
            let bytes = format!("c{name}\n(X\x02\x00\x00\x00lstR.");
            assert!(
                matches!(read(bytes.as_bytes()), Err(PickleError::Refused { .. })),
                "{name}"
            );
        }
        let stacked = b"\x80\x04\x8c\x05posix\x8c\x06system\x93.";
        let error = read(stacked).unwrap_err().to_string();
        assert!(error.contains("`posix.system`"), "{error}");
        let (value, heap) = read(b"cargparse\nNamespace\n)\x81}(X\x01\x00\x00\x00aK\x01ub.").unwrap();
        assert_eq!(heap.describe(&value), "object of argparse.Namespace");
    }

    #[test]
    fn bytes_that_are_no_pickle_are_named() {
        assert_eq!(
            read(b"<html>").unwrap_err(),
            PickleError::Opcode { opcode: b'<', at: 0 }
        );
        assert_eq!(read(b"").unwrap_err(), PickleError::Truncated);
    }
}
