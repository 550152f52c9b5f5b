/**
 * zstd for whole buffers: the system's libzstd, or Node's own (22.15 and newer) where there is none. Contexts are kept by
 * each thread: making one costs more than a cluster.
 */
import * as zlib from 'node:zlib';
import type { IKoffiLib } from 'koffi';
import { koffi } from './koffi';

/** zstd's own default, and QEMU's. */
const LEVEL = 3;

export interface Zstd {
  /** The frame; undefined when it has more than `most` bytes. */
  compress(source: Uint8Array, most: number): Uint8Array | undefined;
  /** Fills `target` from one frame, which nothing follows. Throws when it makes more. @returns bytes made */
  decompress(frame: Uint8Array, target: Uint8Array): number;
}

let known: Zstd | undefined;

/** Throws when there is neither. */
export function zstd(): Zstd {
  known ??= libzstd() ?? nodeZstd();
  if (known !== undefined) return known;
  throw new Error('libzstd.so.1 (Debian package libzstd1) cannot be loaded');
}

export function libzstd(): Zstd | undefined {
  let library: IKoffiLib;
  try {
    library = koffi.load('libzstd.so.1');
  } catch {
    return undefined;
  }
  const compressor = library.func('void *ZSTD_createCCtx()')();
  const decompressor = library.func('void *ZSTD_createDCtx()')();
  // Declared as signed: errors are the largest of size_t, and lengths never are.
  const compress = library.func(
    'int64_t ZSTD_compressCCtx(void *context, uint8_t *to, size_t most, const uint8_t *from, size_t length, int level)',
  );
  const decompress = library.func(
    'int64_t ZSTD_decompressDCtx(void *context, uint8_t *to, size_t most, const uint8_t *from, size_t length)',
  );
  const nameOf = library.func('const char *ZSTD_getErrorName(int64_t code)');
  const bound = library.func('size_t ZSTD_compressBound(size_t length)');
  let frame = new Uint8Array(0);
  const checked = (code: number): number => {
    if (code < 0) throw new Error(nameOf(code));
    return code;
  };
  return {
    compress(source, most) {
      const room = bound(source.length);
      if (frame.length < room) frame = new Uint8Array(room);
      const length = checked(compress(compressor, frame, room, source, source.length, LEVEL));
      return length > most ? undefined : frame.slice(0, length);
    },
    decompress: (bytes, target) => checked(decompress(decompressor, target, target.length, bytes, bytes.length)),
  };
}

/** As much of `node:zlib` as newer versions have. */
interface NewerZlib {
  zstdCompressSync?(bytes: Uint8Array): Uint8Array;
  zstdDecompressSync?(bytes: Uint8Array, options: { maxOutputLength: number }): Uint8Array;
}

export function nodeZstd(): Zstd | undefined {
  const { zstdCompressSync, zstdDecompressSync } = zlib as NewerZlib;
  if (zstdCompressSync === undefined || zstdDecompressSync === undefined) return undefined;
  return {
    compress(source, most) {
      const frame = zstdCompressSync(source);
      return frame.length > most ? undefined : frame;
    },
    decompress(bytes, target) {
      const made = zstdDecompressSync(bytes, { maxOutputLength: target.length });
      target.set(made);
      return made.length;
    },
  };
}
