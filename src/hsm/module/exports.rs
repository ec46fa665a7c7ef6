//! The functions of PKCS#11 2.40, in its order. Each is its arguments, checked and passed on.
#![allow(
    unsafe_code,
    non_snake_case,
    unreachable_pub,
    clippy::missing_safety_doc,
    clippy::too_many_arguments
)]
// The functions are the standard's: PKCS#11 2.40 chapter 5 describes each.
#![allow(missing_docs)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use cryptoki_sys::*;

use super::super::Ck;
use super::super::wire::{Bytes, MAX_DATA, Op, Request};
use super::fleet::is_token;
use super::mechanism::{give_derived, give_iv, mechanism};
use super::memory::{Output, asked, input, read, show, template, write};
use super::{ops, state, tokens};

/// The answer of a function: a fault of this code does not unwind into C.
fn guard(run: impl FnOnce() -> Ck<()>) -> CK_RV {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => CKR_OK,
        Ok(Err(rv)) => rv,
        Err(_) => CKR_GENERAL_ERROR,
    }
}

fn unsupported() -> Ck<()> {
    state::module()?;
    Err(CKR_FUNCTION_NOT_SUPPORTED)
}

/// CK_C_INITIALIZE_ARGS: our locks are the system's, which is allowed unless the caller wants only his own.
///
/// # Safety
/// `at` is null or such a structure.
unsafe fn initialize_args(at: CK_VOID_PTR) -> Ck<()> {
    if at.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    let args: CK_C_INITIALIZE_ARGS = unsafe { read(at.cast())? };
    let given = [
        args.CreateMutex.is_some(),
        args.DestroyMutex.is_some(),
        args.LockMutex.is_some(),
        args.UnlockMutex.is_some(),
    ];
    let some = given.contains(&true);
    if !args.pReserved.is_null() || (some && given.contains(&false)) {
        return Err(CKR_ARGUMENTS_BAD);
    }
    if some && args.flags & CKF_OS_LOCKING_OK == 0 { Err(CKR_CANT_LOCK) } else { Ok(()) }
}

/// Keeps this library in memory for good: the language's and the crypto library's thread-local data has destructors here,
/// which run when a thread ends, also after the caller unloaded the module.
fn stay_loaded() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zeros is a value of this plain structure; `dladdr` fills it for the address of a function of ours;
        // the name that it gives is a C string of the loader. Opening what is open changes its flags only.
        unsafe {
            let mut info: libc::Dl_info = std::mem::zeroed();
            let here: unsafe extern "C" fn(CK_FUNCTION_LIST_PTR_PTR) -> CK_RV = C_GetFunctionList;
            if libc::dladdr(here as *const libc::c_void, &raw mut info) != 0 && !info.dli_fname.is_null() {
                libc::dlopen(info.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE);
            }
        }
    });
}

/// # Safety
/// `count` is null or a number; `list` is null or has room for as many.
unsafe fn give_list(all: &[u64], list: *mut CK_ULONG, count: *mut CK_ULONG) -> Ck<()> {
    // SAFETY: the caller's promise.
    unsafe {
        let room = read(count.cast_const())?;
        write(count, all.len() as CK_ULONG)?;
        if list.is_null() {
            return Ok(());
        }
        if room < all.len() as CK_ULONG {
            return Err(CKR_BUFFER_TOO_SMALL);
        }
        all.iter().enumerate().try_for_each(|(n, one)| write(list.wrapping_add(n), *one))
    }
}

/// # Safety
/// `mech` is null or a mechanism of the caller.
unsafe fn begin(s: u64, op: Op, mech: CK_MECHANISM_PTR, key: u64) -> Ck<()> {
    if mech.is_null() {
        return ops::cancel(s, op);
    }
    // SAFETY: the caller's promise.
    unsafe {
        let given = mechanism(mech)?;
        let iv = ops::init(s, op, given.mech, key)?;
        give_iv(given.iv_out, &iv);
    }
    Ok(())
}

/// # Safety
/// As for C_DeriveKey.
unsafe fn derive(
    s: u64,
    at: CK_MECHANISM_PTR,
    key: u64,
    attrs: CK_ATTRIBUTE_PTR,
    count: CK_ULONG,
    out: CK_OBJECT_HANDLE_PTR,
) -> Ck<()> {
    // SAFETY: the caller's promise.
    unsafe {
        let mech = mechanism(at)?.mech;
        let attrs = template(attrs, count)?;
        let local = !is_token(&attrs);
        let made: Ck<Vec<u64>> = tokens::pass(s, Request::Derive { s, mech, key, attrs });
        if let (Ok(handles), true) = (&made, local) {
            state::module()?.fleet.made(handles);
        }
        match made.as_deref() {
            Ok([first, more @ ..]) => {
                give_derived(at, more)?;
                write(out, *first)
            }
            Ok([]) => Err(CKR_DEVICE_ERROR),
            Err(rv) => {
                let rv = *rv;
                give_derived(at, &[])?;
                Err(rv)
            }
        }
    }
}

/// # Safety
/// `out` is null or has `len` bytes.
unsafe fn random(s: u64, out: CK_BYTE_PTR, len: CK_ULONG) -> Ck<()> {
    if out.is_null() && len > 0 || len > 1 << 30 {
        return Err(CKR_ARGUMENTS_BAD);
    }
    let mut done: CK_ULONG = 0;
    while done < len {
        let piece = u32::try_from((len - done).min(1 << 20)).unwrap_or(0);
        let bytes: Bytes = tokens::pass(s, Request::Random { len: piece })?;
        // What answers is not trusted with the caller's memory.
        if bytes.len() != piece as usize {
            return Err(CKR_DEVICE_ERROR);
        }
        // SAFETY: `done` and the piece, which is as long as was asked, stay within the buffer that the caller promised.
        unsafe {
            out.add(usize::try_from(done).unwrap_or(0)).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
        done += bytes.len() as CK_ULONG;
    }
    if len == 0 { state::module()?.session(s).map(|_| ()) } else { Ok(()) }
}

/// One exported function. Its SAFETY is PKCS#11's own: pointers are null or as long as the lengths beside them say.
macro_rules! exported {
    ($($name:ident($($arg:ident: $type:ty),*) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> CK_RV {
            // SAFETY: the caller keeps the rules of PKCS#11 1.4; what can be checked, `memory` checks.
            #[allow(unused_unsafe)]
            guard(|| unsafe { $body })
        }
    )*};
}

exported! {
    C_Initialize(args: CK_VOID_PTR) {
        initialize_args(args)?;
        stay_loaded();
        state::initialize()
    }

    C_Finalize(reserved: CK_VOID_PTR) {
        if !reserved.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        state::finalize()
    }

    C_GetInfo(out: CK_INFO_PTR) {
        write(out, tokens::info()?)
    }

    C_GetSlotList(present: CK_BBOOL, list: CK_SLOT_ID_PTR, count: CK_ULONG_PTR) {
        give_list(&tokens::slots(present != CK_FALSE)?, list, count)
    }

    C_GetSlotInfo(slot: CK_SLOT_ID, out: CK_SLOT_INFO_PTR) {
        write(out, tokens::slot_info(slot)?)
    }

    C_GetTokenInfo(slot: CK_SLOT_ID, out: CK_TOKEN_INFO_PTR) {
        write(out, tokens::token_info(slot)?)
    }

    C_GetMechanismList(slot: CK_SLOT_ID, list: CK_MECHANISM_TYPE_PTR, count: CK_ULONG_PTR) {
        give_list(&tokens::mechanisms(slot)?, list, count)
    }

    C_GetMechanismInfo(slot: CK_SLOT_ID, kind: CK_MECHANISM_TYPE, out: CK_MECHANISM_INFO_PTR) {
        write(out, tokens::mechanism_info(slot, kind)?)
    }

    C_InitToken(slot: CK_SLOT_ID, pin: CK_UTF8CHAR_PTR, len: CK_ULONG, label: CK_UTF8CHAR_PTR) {
        if label.is_null() || pin.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        tokens::init_token(slot, input(pin, len)?, input(label, 32)?)
    }

    C_InitPIN(s: CK_SESSION_HANDLE, pin: CK_UTF8CHAR_PTR, len: CK_ULONG) {
        if pin.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        tokens::init_pin(s, input(pin, len)?)
    }

    C_SetPIN(s: CK_SESSION_HANDLE, old: CK_UTF8CHAR_PTR, old_len: CK_ULONG, new: CK_UTF8CHAR_PTR, new_len: CK_ULONG) {
        if old.is_null() || new.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        tokens::set_pin(s, input(old, old_len)?, input(new, new_len)?)
    }

    C_OpenSession(slot: CK_SLOT_ID, flags: CK_FLAGS, _application: CK_VOID_PTR, _notify: CK_NOTIFY, out: CK_SESSION_HANDLE_PTR) {
        if out.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        write(out, tokens::open_session(slot, flags)?)
    }

    C_CloseSession(s: CK_SESSION_HANDLE) {
        tokens::close_session(s)
    }

    C_CloseAllSessions(slot: CK_SLOT_ID) {
        tokens::close_all(slot)
    }

    C_GetSessionInfo(s: CK_SESSION_HANDLE, out: CK_SESSION_INFO_PTR) {
        write(out, tokens::session_info(s)?)
    }

    C_GetOperationState(_s: CK_SESSION_HANDLE, _out: CK_BYTE_PTR, _len: CK_ULONG_PTR) {
        unsupported()
    }

    C_SetOperationState(_s: CK_SESSION_HANDLE, _at: CK_BYTE_PTR, _len: CK_ULONG, _a: CK_OBJECT_HANDLE, _b: CK_OBJECT_HANDLE) {
        unsupported()
    }

    C_Login(s: CK_SESSION_HANDLE, kind: CK_USER_TYPE, pin: CK_UTF8CHAR_PTR, len: CK_ULONG) {
        if pin.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        tokens::login(s, kind, input(pin, len)?)
    }

    C_Logout(s: CK_SESSION_HANDLE) {
        tokens::logout(s)
    }

    C_CreateObject(s: CK_SESSION_HANDLE, at: CK_ATTRIBUTE_PTR, count: CK_ULONG, out: CK_OBJECT_HANDLE_PTR) {
        if out.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let attrs = template(at, count)?;
        write(out, tokens::make(s, !is_token(&attrs), Request::Create { s, attrs })?)
    }

    C_CopyObject(s: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, at: CK_ATTRIBUTE_PTR, count: CK_ULONG, out: CK_OBJECT_HANDLE_PTR) {
        if out.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let attrs = template(at, count)?;
        write(out, tokens::make(s, !is_token(&attrs), Request::Copy { s, object, attrs })?)
    }

    C_DestroyObject(s: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) {
        tokens::pass::<()>(s, Request::Destroy { s, object })?;
        state::module()?.fleet.destroyed(object);
        Ok(())
    }

    C_GetObjectSize(_s: CK_SESSION_HANDLE, _object: CK_OBJECT_HANDLE, _out: CK_ULONG_PTR) {
        unsupported()
    }

    C_GetAttributeValue(s: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, at: CK_ATTRIBUTE_PTR, count: CK_ULONG) {
        let (worst, shown) = tokens::attributes(s, object, asked(at, count)?)?;
        show(at, &shown, worst)
    }

    C_SetAttributeValue(s: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, at: CK_ATTRIBUTE_PTR, count: CK_ULONG) {
        let attrs = template(at, count)?;
        tokens::pass(s, Request::SetAttrs { s, object, attrs })
    }

    C_FindObjectsInit(s: CK_SESSION_HANDLE, at: CK_ATTRIBUTE_PTR, count: CK_ULONG) {
        tokens::find_init(s, template(at, count)?)
    }

    C_FindObjects(s: CK_SESSION_HANDLE, out: CK_OBJECT_HANDLE_PTR, most: CK_ULONG, count: CK_ULONG_PTR) {
        if out.is_null() || count.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let found = tokens::find(s, most)?;
        for (n, handle) in found.iter().enumerate() {
            write(out.wrapping_add(n), *handle)?;
        }
        write(count, found.len() as CK_ULONG)
    }

    C_FindObjectsFinal(s: CK_SESSION_HANDLE) {
        tokens::find_final(s)
    }

    C_EncryptInit(s: CK_SESSION_HANDLE, mech: CK_MECHANISM_PTR, key: CK_OBJECT_HANDLE) {
        begin(s, Op::Encrypt, mech, key)
    }

    C_Encrypt(s: CK_SESSION_HANDLE, data: CK_BYTE_PTR, len: CK_ULONG, out: CK_BYTE_PTR, out_len: CK_ULONG_PTR) {
        ops::single(s, Op::Encrypt, input(data, len), Output::new(out, out_len))
    }

    C_EncryptUpdate(s: CK_SESSION_HANDLE, data: CK_BYTE_PTR, len: CK_ULONG, out: CK_BYTE_PTR, out_len: CK_ULONG_PTR) {
        ops::update(s, Op::Encrypt, input(data, len), Output::new(out, out_len))
    }

    C_EncryptFinal(s: CK_SESSION_HANDLE, out: CK_BYTE_PTR, out_len: CK_ULONG_PTR) {
        ops::last(s, Op::Encrypt, Output::new(out, out_len))
    }

    C_DecryptInit(s: CK_SESSION_HANDLE, mech: CK_MECHANISM_PTR, key: CK_OBJECT_HANDLE) {
        begin(s, Op::Decrypt, mech, key)
    }

    C_Decrypt(s: CK_SESSION_HANDLE, data: CK_BYTE_PTR, len: CK_ULONG, out: CK_BYTE_PTR, out_len: CK_ULONG_PTR) {
        ops::single(s, Op::Decrypt, input(data, len), Output::new(out, out_len))
    }

    C_DecryptUpdate(s: CK_SESSION_HANDLE, data: CK_BYTE_PTR, len: CK_ULONG, out: CK_BYTE_PTR, out_len: CK_ULONG_PTR) {
        ops::update(s, Op::Decrypt, input(data, len), Output::new(out, out_len))
    }

    C_DecryptFinal(s: CK_SESSION_HANDLE, out: CK_BYTE_PTR, out_len: CK_ULONG_PTR) {
        ops::last(s, Op::Decrypt, Output::new(out, out_len))
    }

    C_DigestInit(s: CK_SESSION_HANDLE, mech: CK_MECHANISM_PTR) {
        begin(s, Op::Digest, mech, 0)
    }

    C_Digest(s: CK_SESSION_HANDLE, data: CK_BYTE_PTR, len: CK_ULONG, out: CK_BYTE_PTR, out_len: CK_ULONG_PTR) {
        ops::single(s, Op::Digest, input(data, len), Output::new(out, out_len))
    }

    C_DigestUpdate(s: CK_SESSION_HANDLE, data: CK_BYTE_PTR, len: CK_ULONG) {
        ops::absorb(s, Op::Digest, input(data, len))
    }

    C_DigestKey(s: CK_SESSION_HANDLE, key: CK_OBJECT_HANDLE) {
        ops::digest_key(s, key)
    }

    C_DigestFinal(s: CK_SESSION_HANDLE, out: CK_BYTE_PTR, out_len: CK_ULONG_PTR) {
        ops::last(s, Op::Digest, Output::new(out, out_len))
    }

    C_SignInit(s: CK_SESSION_HANDLE, mech: CK_MECHANISM_PTR, key: CK_OBJECT_HANDLE) {
        begin(s, Op::Sign, mech, key)
    }

    C_Sign(s: CK_SESSION_HANDLE, data: CK_BYTE_PTR, len: CK_ULONG, out: CK_BYTE_PTR, out_len: CK_ULONG_PTR) {
        ops::single(s, Op::Sign, input(data, len), Output::new(out, out_len))
    }

    C_SignUpdate(s: CK_SESSION_HANDLE, data: CK_BYTE_PTR, len: CK_ULONG) {
        ops::absorb(s, Op::Sign, input(data, len))
    }

    C_SignFinal(s: CK_SESSION_HANDLE, out: CK_BYTE_PTR, out_len: CK_ULONG_PTR) {
        ops::last(s, Op::Sign, Output::new(out, out_len))
    }

    C_SignRecoverInit(_s: CK_SESSION_HANDLE, _mech: CK_MECHANISM_PTR, _key: CK_OBJECT_HANDLE) {
        unsupported()
    }

    C_SignRecover(_s: CK_SESSION_HANDLE, _data: CK_BYTE_PTR, _len: CK_ULONG, _out: CK_BYTE_PTR, _out_len: CK_ULONG_PTR) {
        unsupported()
    }

    C_VerifyInit(s: CK_SESSION_HANDLE, mech: CK_MECHANISM_PTR, key: CK_OBJECT_HANDLE) {
        begin(s, Op::Verify, mech, key)
    }

    C_Verify(s: CK_SESSION_HANDLE, data: CK_BYTE_PTR, len: CK_ULONG, signature: CK_BYTE_PTR, signature_len: CK_ULONG) {
        ops::verify(s, input(data, len), input(signature, signature_len))
    }

    C_VerifyUpdate(s: CK_SESSION_HANDLE, data: CK_BYTE_PTR, len: CK_ULONG) {
        ops::absorb(s, Op::Verify, input(data, len))
    }

    C_VerifyFinal(s: CK_SESSION_HANDLE, signature: CK_BYTE_PTR, len: CK_ULONG) {
        ops::verify_last(s, input(signature, len))
    }

    C_VerifyRecoverInit(_s: CK_SESSION_HANDLE, _mech: CK_MECHANISM_PTR, _key: CK_OBJECT_HANDLE) {
        unsupported()
    }

    C_VerifyRecover(_s: CK_SESSION_HANDLE, _data: CK_BYTE_PTR, _len: CK_ULONG, _out: CK_BYTE_PTR, _out_len: CK_ULONG_PTR) {
        unsupported()
    }

    C_DigestEncryptUpdate(_s: CK_SESSION_HANDLE, _data: CK_BYTE_PTR, _len: CK_ULONG, _out: CK_BYTE_PTR, _out_len: CK_ULONG_PTR) {
        unsupported()
    }

    C_DecryptDigestUpdate(_s: CK_SESSION_HANDLE, _data: CK_BYTE_PTR, _len: CK_ULONG, _out: CK_BYTE_PTR, _out_len: CK_ULONG_PTR) {
        unsupported()
    }

    C_SignEncryptUpdate(_s: CK_SESSION_HANDLE, _data: CK_BYTE_PTR, _len: CK_ULONG, _out: CK_BYTE_PTR, _out_len: CK_ULONG_PTR) {
        unsupported()
    }

    C_DecryptVerifyUpdate(_s: CK_SESSION_HANDLE, _data: CK_BYTE_PTR, _len: CK_ULONG, _out: CK_BYTE_PTR, _out_len: CK_ULONG_PTR) {
        unsupported()
    }

    C_GenerateKey(s: CK_SESSION_HANDLE, mech: CK_MECHANISM_PTR, at: CK_ATTRIBUTE_PTR, count: CK_ULONG, out: CK_OBJECT_HANDLE_PTR) {
        if out.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let mech = mechanism(mech)?.mech;
        let attrs = template(at, count)?;
        write(out, tokens::make(s, !is_token(&attrs), Request::Generate { s, mech, attrs })?)
    }

    C_GenerateKeyPair(s: CK_SESSION_HANDLE, mech: CK_MECHANISM_PTR, public: CK_ATTRIBUTE_PTR, public_count: CK_ULONG, private: CK_ATTRIBUTE_PTR, private_count: CK_ULONG, public_out: CK_OBJECT_HANDLE_PTR, private_out: CK_OBJECT_HANDLE_PTR) {
        if public_out.is_null() || private_out.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let mech = mechanism(mech)?.mech;
        let (public, private) = (template(public, public_count)?, template(private, private_count)?);
        let local = [!is_token(&public), !is_token(&private)];
        let (a, b): (u64, u64) = tokens::pass(s, Request::GeneratePair { s, mech, public, private })?;
        for (handle, _) in [a, b].iter().zip(local).filter(|(_, local)| *local) {
            state::module()?.fleet.made(&[*handle]);
        }
        write(public_out, a)?;
        write(private_out, b)
    }

    C_WrapKey(s: CK_SESSION_HANDLE, mech: CK_MECHANISM_PTR, by: CK_OBJECT_HANDLE, key: CK_OBJECT_HANDLE, out: CK_BYTE_PTR, out_len: CK_ULONG_PTR) {
        let given = mechanism(mech)?;
        let out = Output::new(out, out_len)?;
        let (wrapped, iv): (Bytes, Bytes) = tokens::pass(s, Request::Wrap { s, mech: given.mech, by, key })?;
        if out.give(&wrapped)? {
            give_iv(given.iv_out, &iv);
        }
        Ok(())
    }

    C_UnwrapKey(s: CK_SESSION_HANDLE, mech: CK_MECHANISM_PTR, by: CK_OBJECT_HANDLE, wrapped: CK_BYTE_PTR, len: CK_ULONG, at: CK_ATTRIBUTE_PTR, count: CK_ULONG, out: CK_OBJECT_HANDLE_PTR) {
        if out.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let mech = mechanism(mech)?.mech;
        let wrapped = Bytes::new(input(wrapped, len)?.to_vec());
        if wrapped.len() > MAX_DATA {
            return Err(CKR_WRAPPED_KEY_LEN_RANGE);
        }
        let attrs = template(at, count)?;
        write(out, tokens::make(s, !is_token(&attrs), Request::Unwrap { s, mech, by, wrapped, attrs })?)
    }

    C_DeriveKey(s: CK_SESSION_HANDLE, mech: CK_MECHANISM_PTR, key: CK_OBJECT_HANDLE, at: CK_ATTRIBUTE_PTR, count: CK_ULONG, out: CK_OBJECT_HANDLE_PTR) {
        if out.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        derive(s, mech, key, at, count, out)
    }

    C_SeedRandom(s: CK_SESSION_HANDLE, seed: CK_BYTE_PTR, len: CK_ULONG) {
        input(seed, len)?;
        state::module()?.session(s).map(|_| ())
    }

    C_GenerateRandom(s: CK_SESSION_HANDLE, out: CK_BYTE_PTR, len: CK_ULONG) {
        random(s, out, len)
    }

    C_GetFunctionStatus(_s: CK_SESSION_HANDLE) {
        Err(CKR_FUNCTION_NOT_PARALLEL)
    }

    C_CancelFunction(_s: CK_SESSION_HANDLE) {
        Err(CKR_FUNCTION_NOT_PARALLEL)
    }

    C_WaitForSlotEvent(flags: CK_FLAGS, slot: CK_SLOT_ID_PTR, _reserved: CK_VOID_PTR) {
        state::module()?;
        if slot.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        if flags & CKF_DONT_BLOCK != 0 { Err(CKR_NO_EVENT) } else { unsupported() }
    }
}

/// The list that C_GetFunctionList gives.
static FUNCTIONS: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
    version: CK_VERSION { major: 2, minor: 40 },
    C_Initialize: Some(C_Initialize),
    C_Finalize: Some(C_Finalize),
    C_GetInfo: Some(C_GetInfo),
    C_GetFunctionList: Some(C_GetFunctionList),
    C_GetSlotList: Some(C_GetSlotList),
    C_GetSlotInfo: Some(C_GetSlotInfo),
    C_GetTokenInfo: Some(C_GetTokenInfo),
    C_GetMechanismList: Some(C_GetMechanismList),
    C_GetMechanismInfo: Some(C_GetMechanismInfo),
    C_InitToken: Some(C_InitToken),
    C_InitPIN: Some(C_InitPIN),
    C_SetPIN: Some(C_SetPIN),
    C_OpenSession: Some(C_OpenSession),
    C_CloseSession: Some(C_CloseSession),
    C_CloseAllSessions: Some(C_CloseAllSessions),
    C_GetSessionInfo: Some(C_GetSessionInfo),
    C_GetOperationState: Some(C_GetOperationState),
    C_SetOperationState: Some(C_SetOperationState),
    C_Login: Some(C_Login),
    C_Logout: Some(C_Logout),
    C_CreateObject: Some(C_CreateObject),
    C_CopyObject: Some(C_CopyObject),
    C_DestroyObject: Some(C_DestroyObject),
    C_GetObjectSize: Some(C_GetObjectSize),
    C_GetAttributeValue: Some(C_GetAttributeValue),
    C_SetAttributeValue: Some(C_SetAttributeValue),
    C_FindObjectsInit: Some(C_FindObjectsInit),
    C_FindObjects: Some(C_FindObjects),
    C_FindObjectsFinal: Some(C_FindObjectsFinal),
    C_EncryptInit: Some(C_EncryptInit),
    C_Encrypt: Some(C_Encrypt),
    C_EncryptUpdate: Some(C_EncryptUpdate),
    C_EncryptFinal: Some(C_EncryptFinal),
    C_DecryptInit: Some(C_DecryptInit),
    C_Decrypt: Some(C_Decrypt),
    C_DecryptUpdate: Some(C_DecryptUpdate),
    C_DecryptFinal: Some(C_DecryptFinal),
    C_DigestInit: Some(C_DigestInit),
    C_Digest: Some(C_Digest),
    C_DigestUpdate: Some(C_DigestUpdate),
    C_DigestKey: Some(C_DigestKey),
    C_DigestFinal: Some(C_DigestFinal),
    C_SignInit: Some(C_SignInit),
    C_Sign: Some(C_Sign),
    C_SignUpdate: Some(C_SignUpdate),
    C_SignFinal: Some(C_SignFinal),
    C_SignRecoverInit: Some(C_SignRecoverInit),
    C_SignRecover: Some(C_SignRecover),
    C_VerifyInit: Some(C_VerifyInit),
    C_Verify: Some(C_Verify),
    C_VerifyUpdate: Some(C_VerifyUpdate),
    C_VerifyFinal: Some(C_VerifyFinal),
    C_VerifyRecoverInit: Some(C_VerifyRecoverInit),
    C_VerifyRecover: Some(C_VerifyRecover),
    C_DigestEncryptUpdate: Some(C_DigestEncryptUpdate),
    C_DecryptDigestUpdate: Some(C_DecryptDigestUpdate),
    C_SignEncryptUpdate: Some(C_SignEncryptUpdate),
    C_DecryptVerifyUpdate: Some(C_DecryptVerifyUpdate),
    C_GenerateKey: Some(C_GenerateKey),
    C_GenerateKeyPair: Some(C_GenerateKeyPair),
    C_WrapKey: Some(C_WrapKey),
    C_UnwrapKey: Some(C_UnwrapKey),
    C_DeriveKey: Some(C_DeriveKey),
    C_SeedRandom: Some(C_SeedRandom),
    C_GenerateRandom: Some(C_GenerateRandom),
    C_GetFunctionStatus: Some(C_GetFunctionStatus),
    C_CancelFunction: Some(C_CancelFunction),
    C_WaitForSlotEvent: Some(C_WaitForSlotEvent),
};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(out: CK_FUNCTION_LIST_PTR_PTR) -> CK_RV {
    // The list is never written: the standard's type has no `const` for it.
    // SAFETY: `out` is null or the caller's place for one pointer.
    guard(|| unsafe { write(out, (&raw const FUNCTIONS).cast_mut()) })
}
