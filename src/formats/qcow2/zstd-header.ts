/** As much of a zstd frame as tells where it ends (RFC 8878, section 3.1.1). */

/** zstd's largest window that is accepted, bytes; ours. A cluster is at most 2 MiB. */
const WINDOW_MAX = 8 * 1024 * 1024;
/** Bytes that one block of a zstd frame makes at most; spec. */
const ZSTD_BLOCK_MAX = 128 * 1024;
const ZSTD_MAGIC = 0xfd2fb528;

/** Where the frame ends: header, then blocks that say how long they are. Refuses what could make more than a cluster. */
export function frameLength(bytes: Uint8Array, length: number): number {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.length < 6 || view.readUInt32LE(0) !== ZSTD_MAGIC) throw new Error('no zstd frame');
  const flags = view[4];
  const single = (flags & 0x20) !== 0;
  if ((flags & 3) !== 0) throw new Error('it needs a dictionary');
  const sizeBytes = [single ? 1 : 0, 2, 4, 8][flags >> 6];
  if (!single) {
    const base = 2 ** (10 + (view[5] >> 3));
    if (base + (base / 8) * (view[5] & 7) > WINDOW_MAX) throw new Error('its window is too large');
  }
  let at = single ? 5 : 6;
  if (single && contentSize(view, at, sizeBytes) > length) throw new Error(`it makes more than ${length} bytes`);
  at += sizeBytes;
  let plain = 0;
  for (let last = false; !last; ) {
    if (at + 3 > view.length) throw new Error('it is cut off');
    const head = view.readUIntLE(at, 3);
    last = (head & 1) !== 0;
    const type = (head >> 1) & 3;
    const size = head >> 3;
    // Of raw and repeated bytes the length is known now; the decoder bounds the others.
    if (type < 2) plain += size;
    if (plain > length || size > ZSTD_BLOCK_MAX) throw new Error(`it makes more than ${length} bytes`);
    at += 3 + (type === 1 ? 1 : size);
  }
  const end = at + ((flags & 4) !== 0 ? 4 : 0);
  if (end > view.length) throw new Error('it is cut off');
  return end;
}

function contentSize(view: Buffer, at: number, bytes: number): number {
  if (at + bytes > view.length) throw new Error('it is cut off');
  if (bytes === 8) return Number(view.readBigUInt64LE(at));
  return view.readUIntLE(at, bytes) + (bytes === 2 ? 256 : 0);
}
