/** A `disk` over a node in memory, for the tests of what the file does. */
import { DiskFile } from '../../../src/vfs/disk-file';
import { MemoryNode, type MemoryNodeOptions } from './memory-node';

export const SIZE = 16 * 1024;
export const MTIME_MS = 1_600_000_000_000;

export interface Made {
  node: MemoryNode;
  file: DiskFile;
  times: Float64Array;
}

export function make(options: { growable?: boolean; writable?: boolean } & Partial<MemoryNodeOptions> = {}): Made {
  const { growable = false, writable = true, ...more } = options;
  const node = new MemoryNode({ size: SIZE, ...more });
  const times = new Float64Array([0, MTIME_MS]);
  const facts = { ino: 2, mode: 0o600, uid: 7, gid: 8, times, clock: 1 };
  return { node, times, file: new DiskFile(node, facts, { writable, growable }) };
}

export function contentOf(node: MemoryNode): Uint8Array {
  const bytes = new Uint8Array(node.size());
  node.read(0, bytes, 0, bytes.length);
  return bytes;
}

/** `ENOSPC` for what throws it, else what is returned. */
export function outcome<T>(run: () => T): T | string {
  try {
    return run();
  } catch (error) {
    return String((error as { code?: unknown }).code);
  }
}
