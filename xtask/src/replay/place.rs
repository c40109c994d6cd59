//! Where a guest stands: its registers and its code, for people.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use serde_json::{Map, Value};

/// Instructions that are shown.
const INSTRUCTIONS: usize = 8;
/// Registers in a line.
const IN_A_LINE: usize = 4;
const NAMES: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags",
];

/// What the machine's event `stands` says. What is missing in it is left out.
pub fn describe(fields: &Map<String, Value>) -> String {
    let number = |key: &str| fields.get(key).and_then(Value::as_u64);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "the guest stands at position {}:", number("position").unwrap_or_default());
    if let Some(registers) = fields.get("registers").and_then(Value::as_object) {
        let known: Vec<_> = NAMES.iter().filter_map(|name| Some((name, registers.get(*name)?.as_u64()?))).collect();
        for line in known.chunks(IN_A_LINE) {
            let words: Vec<_> = line.iter().map(|(name, value)| format!("{name:>6} {value:016x}")).collect();
            let _ = writeln!(text, "  {}", words.join(" "));
        }
    }
    let code = fields.get("code").and_then(Value::as_str).and_then(bytes_of_hex).unwrap_or_default();
    let bits = number("bits").and_then(|bits| u32::try_from(bits).ok()).filter(|bits| [16, 32, 64].contains(bits));
    disassemble(&code, bits.unwrap_or(64), number("code_at").unwrap_or_default(), &mut text);
    text
}

fn disassemble(code: &[u8], bits: u32, address: u64, text: &mut String) {
    let mut decoder = Decoder::with_ip(bits, code, address, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::new();
    for _ in 0..INSTRUCTIONS {
        if !decoder.can_decode() {
            break;
        }
        let start = decoder.position();
        let instruction = decoder.decode();
        // The last one may be cut off.
        if instruction.is_invalid() && decoder.position() == code.len() {
            break;
        }
        let mut words = String::new();
        formatter.format(&instruction, &mut words);
        let bytes: String = code[start..decoder.position()].iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = writeln!(text, "  {:016x}  {bytes:<22} {words}", instruction.ip());
    }
}

/// The bytes of pairs of hexadecimal digits.
pub fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let all = digits.len().is_multiple_of(2) && digits.iter().all(u8::is_ascii_hexdigit);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if all { digits.chunks(2).map(byte).collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_described() {
        let fields = serde_json::json!({
            "position": 77, "code_at": 0x1000, "bits": 64, "code": "48ffc0eb02c390f4",
            "registers": {"rax": 5, "rip": 0x1000},
        });
        let text = describe(fields.as_object().unwrap());
        let expected = "the guest stands at position 77:\n  \
            \u{20}  rax 0000000000000005    rip 0000000000001000\n  \
            0000000000001000  48ffc0                 inc rax\n  \
            0000000000001003  eb02                   jmp short 0000000000001007h\n  \
            0000000000001005  c3                     ret\n  \
            0000000000001006  90                     nop\n  \
            0000000000001007  f4                     hlt\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn nonsense_is_survived() {
        for fields in
            [serde_json::json!({}), serde_json::json!({"code": "4", "bits": 7, "registers": 3, "code_at": -1})]
        {
            assert!(describe(fields.as_object().unwrap()).contains("position 0"));
        }
    }
}
