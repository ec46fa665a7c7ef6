//! The border to C: pointers and lengths become slices, answers go into the caller's buffers.
//!
//! All that can be checked is checked: null pointers, lengths that no buffer has. That a non-null pointer is as long
//! as the caller says is the caller's promise (PKCS#11 1.4), and what the SAFETY notes here rest on.
#![allow(unsafe_code)]

use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::super::Ck;
use super::super::attrs::{Kind, kind};
use super::super::wire::{Bytes, Template, decode, encode};

/// The longest input of one call. CK_ULONG lengths near 2^64 are an int of -1 on the caller's side.
const MAX_INPUT: u64 = 1 << 30;
/// The most attributes of a template.
const MAX_ATTRIBUTES: u64 = 512;

/// A length that fits.
fn checked(len: CK_ULONG, most: u64) -> Ck<usize> {
    if len > most { Err(CKR_ARGUMENTS_BAD) } else { usize::try_from(len).map_err(|_| CKR_ARGUMENTS_BAD) }
}

/// Bytes of the caller. A null pointer is an empty input, and bad with a length.
///
/// # Safety
/// `at` is null, or `len` bytes can be read there for as long as `'a`.
pub(super) unsafe fn input<'a>(at: *const u8, len: CK_ULONG) -> Ck<&'a [u8]> {
    let len = checked(len, MAX_INPUT)?;
    match (at.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(CKR_ARGUMENTS_BAD),
        // SAFETY: the caller's promise; the length is below 1 GiB.
        (false, len) => Ok(unsafe { std::slice::from_raw_parts(at, len) }),
    }
}

/// One value that the caller lent.
///
/// # Safety
/// `at` is null, or a `T` can be read there; any bytes are a `T`.
pub(super) unsafe fn read<T: Copy>(at: *const T) -> Ck<T> {
    if at.is_null() {
        return Err(CKR_ARGUMENTS_BAD);
    }
    // SAFETY: not null, else the caller's promise; alignment is not asked for.
    Ok(unsafe { at.read_unaligned() })
}

/// Writes one value into the caller's memory.
///
/// # Safety
/// `at` is null, or a `T` can be written there.
pub(super) unsafe fn write<T>(at: *mut T, value: T) -> Ck<()> {
    if at.is_null() {
        return Err(CKR_ARGUMENTS_BAD);
    }
    // SAFETY: not null, else the caller's promise; alignment is not asked for.
    unsafe { at.write_unaligned(value) };
    Ok(())
}

/// The caller's buffer for an answer whose length he may ask for first.
pub(super) struct Output {
    at: *mut u8,
    len: *mut CK_ULONG,
    room: usize,
}

impl Output {
    /// # Safety
    /// `len` is null or a number; `at` is null or has as many bytes as that number says.
    pub(super) unsafe fn new(at: *mut u8, len: *mut CK_ULONG) -> Ck<Self> {
        // SAFETY: the caller's promise.
        let room = unsafe { read(len.cast_const())? };
        let room = if at.is_null() { 0 } else { usize::try_from(room).unwrap_or(usize::MAX) };
        Ok(Self { at, len, room })
    }

    /// Gives the answer: `Ok(true)` where it was taken, `Ok(false)` where only its length was asked for.
    pub(super) fn give(&self, bytes: &[u8]) -> Ck<bool> {
        // SAFETY: `new` read a number there.
        unsafe { self.len.write_unaligned(bytes.len() as CK_ULONG) };
        if self.at.is_null() {
            return Ok(false);
        }
        if bytes.len() > self.room {
            return Err(CKR_BUFFER_TOO_SMALL);
        }
        // SAFETY: the buffer has `room` bytes, by the promise made to `new`; it is the caller's own, not ours.
        unsafe { self.at.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(true)
    }
}

/// A template of the caller, nested ones included.
///
/// # Safety
/// `at` is null or has `count` attributes, each of which is null or as long as it says.
pub(super) unsafe fn template(at: *const CK_ATTRIBUTE, count: CK_ULONG) -> Ck<Template> {
    // SAFETY: the caller's promise, at both levels.
    unsafe { template_at(at, count, 0) }
}

/// # Safety
/// As for [`template`].
unsafe fn template_at(at: *const CK_ATTRIBUTE, count: CK_ULONG, depth: u32) -> Ck<Template> {
    let count = checked(count, MAX_ATTRIBUTES)?;
    if count > 0 && at.is_null() || depth > 1 {
        return Err(CKR_ARGUMENTS_BAD);
    }
    let mut all = Vec::with_capacity(count);
    for n in 0..count {
        // SAFETY: `n` is below the number of attributes that the caller promised.
        let attribute = unsafe { read(at.add(n))? };
        let value = if kind(attribute.type_) == Some(Kind::Nested) {
            let each = size_of::<CK_ATTRIBUTE>() as CK_ULONG;
            if attribute.ulValueLen % each != 0 {
                return Err(CKR_ATTRIBUTE_VALUE_INVALID);
            }
            // SAFETY: the caller's promise about the nested template.
            let inner =
                unsafe { template_at(attribute.pValue.cast(), attribute.ulValueLen / each, depth + 1)? };
            encode(&inner)
        } else {
            if attribute.pValue.is_null() && attribute.ulValueLen > 0 {
                return Err(CKR_ATTRIBUTE_VALUE_INVALID);
            }
            // SAFETY: not null, else the caller's promise about the value's length.
            let bytes = unsafe { input(attribute.pValue.cast(), attribute.ulValueLen) };
            Zeroizing::new(bytes.map_err(|_| CKR_ATTRIBUTE_VALUE_INVALID)?.to_vec())
        };
        all.push((attribute.type_, value));
    }
    Ok(all)
}

/// The types that a template asks for.
///
/// # Safety
/// `at` is null or has `count` attributes.
pub(super) unsafe fn asked(at: *const CK_ATTRIBUTE, count: CK_ULONG) -> Ck<Vec<u64>> {
    let count = checked(count, MAX_ATTRIBUTES)?;
    // SAFETY: the caller's promise.
    (0..count).map(|n| unsafe { read(at.wrapping_add(n)) }.map(|a| a.type_)).collect()
}

/// Fills the template of C_GetAttributeValue; gives the worst of what was wrong.
///
/// # Safety
/// `at` has as many attributes as `shown` has, each with a null pointer or a buffer as long as it says.
pub(super) unsafe fn show(at: *mut CK_ATTRIBUTE, shown: &[(u64, Option<Bytes>)], mut worst: CK_RV) -> Ck<()> {
    for (n, (name, value)) in shown.iter().enumerate() {
        let place = at.wrapping_add(n);
        // SAFETY: `n` is below the number of attributes that the caller promised.
        let mut attribute = unsafe { read(place.cast_const())? };
        match value {
            None => attribute.ulValueLen = CK_UNAVAILABLE_INFORMATION,
            Some(value) if kind(*name) == Some(Kind::Nested) => {
                // SAFETY: the caller's promise about the nested template.
                worst = unsafe { show_nested(&mut attribute, value, worst)? };
            }
            Some(value) if attribute.pValue.is_null() => attribute.ulValueLen = value.len() as CK_ULONG,
            Some(value) if attribute.ulValueLen < value.len() as CK_ULONG => {
                attribute.ulValueLen = CK_UNAVAILABLE_INFORMATION;
                worst = CKR_BUFFER_TOO_SMALL;
            }
            Some(value) => {
                // SAFETY: the buffer is as long as it says, which is long enough.
                unsafe {
                    attribute.pValue.cast::<u8>().copy_from_nonoverlapping(value.as_ptr(), value.len());
                }
                attribute.ulValueLen = value.len() as CK_ULONG;
            }
        }
        // SAFETY: as for the read above.
        unsafe { write(place, attribute)? };
    }
    if worst == CKR_OK { Ok(()) } else { Err(worst) }
}

/// # Safety
/// The attribute's value is null, or as many attributes as its length holds, each as `show` takes them.
unsafe fn show_nested(attribute: &mut CK_ATTRIBUTE, value: &[u8], worst: CK_RV) -> Ck<CK_RV> {
    let inner: Template = decode(value).ok_or(CKR_DEVICE_ERROR)?;
    let needed = (inner.len() * size_of::<CK_ATTRIBUTE>()) as CK_ULONG;
    if attribute.pValue.is_null() {
        attribute.ulValueLen = needed;
        return Ok(worst);
    }
    if attribute.ulValueLen < needed {
        attribute.ulValueLen = CK_UNAVAILABLE_INFORMATION;
        return Ok(CKR_BUFFER_TOO_SMALL);
    }
    attribute.ulValueLen = needed;
    for (n, (name, value)) in inner.iter().enumerate() {
        let place = attribute.pValue.cast::<CK_ATTRIBUTE>().wrapping_add(n);
        // SAFETY: `n` is below the number of attributes that fit.
        let mut one = unsafe { read(place.cast_const())? };
        one.type_ = *name;
        if !one.pValue.is_null() && one.ulValueLen >= value.len() as CK_ULONG {
            // SAFETY: the buffer is as long as it says, which is long enough.
            unsafe { one.pValue.cast::<u8>().copy_from_nonoverlapping(value.as_ptr(), value.len()) };
        }
        one.ulValueLen = value.len() as CK_ULONG;
        // SAFETY: as for the read above.
        unsafe { write(place, one)? };
    }
    Ok(worst)
}

/// Text in a fixed field, blanks behind it.
pub(super) fn blank_padded<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [b' '; N];
    let mut len = text.len().min(N);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    out[..len].copy_from_slice(&text.as_bytes()[..len]);
    out
}
