import { alignUp, KIB } from '../units';

let bytes = new Uint8Array(0);

/** This thread's buffer for putting clusters together; its content is the caller's until the next call. */
export function scratch(length: number): Uint8Array {
  if (bytes.length < length) bytes = new Uint8Array(alignUp(length, 64 * KIB));
  return bytes;
}
