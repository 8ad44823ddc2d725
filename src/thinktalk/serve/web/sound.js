// Sound as numbers: base64, PCM16 and WAV files.

export const RATE_HZ = 24000;
const SAMPLES_PER_MS = RATE_HZ / 1000;
const BYTES_AT_ONCE = 0x8000; // String.fromCharCode takes only so many arguments

export const toMs = (samples) => samples / SAMPLES_PER_MS;
export const toSamples = (ms) => Math.round(ms * SAMPLES_PER_MS);

/** Int16Array -> base64 of its little-endian bytes. */
export function encodePcm(samples) {
  return encodeBytes(new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength));
}

/** Uint8Array -> base64. */
export function encodeBytes(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += BYTES_AT_ONCE) {
    text += String.fromCharCode(...bytes.subarray(at, at + BYTES_AT_ONCE));
  }
  return btoa(text);
}

/** base64 -> Int16Array; half a sample at the end is dropped. */
export function decodePcm(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length & ~1);
  for (let at = 0; at < bytes.length; at++) bytes[at] = text.charCodeAt(at);
  return new Int16Array(bytes.buffer);
}

/** Float32Array in -1..1 -> Int16Array. */
export function toPcm(samples) {
  return Int16Array.from(samples, (value) => Math.max(-1, Math.min(1, value)) * 32767);
}

/** Int16Array -> Float32Array in -1..1. */
export function toFloat(samples) {
  return Float32Array.from(samples, (value) => value / 32768);
}

/** Pieces (Int16Array[]) of one recording -> one Int16Array. */
export function joined(pieces) {
  const whole = new Int16Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

/** A mono recording (Int16Array) at 24 kHz -> the bytes of a WAV file. */
export function wavBytes(samples) {
  const file = new Uint8Array(44 + samples.byteLength);
  const header = new DataView(file.buffer);
  const write = (at, text) => [...text].forEach((c, k) => header.setUint8(at + k, c.charCodeAt(0)));
  write(0, "RIFF");
  header.setUint32(4, 36 + samples.byteLength, true);
  write(8, "WAVEfmt ");
  header.setUint32(16, 16, true); // length of the format's description
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // mono
  header.setUint32(24, RATE_HZ, true);
  header.setUint32(28, RATE_HZ * 2, true); // bytes a second
  header.setUint16(32, 2, true); // bytes a frame
  header.setUint16(34, 16, true); // bits a sample
  write(36, "data");
  header.setUint32(40, samples.byteLength, true);
  file.set(new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength), 44);
  return file;
}
