/** `vmstate`: the memory and devices of the guest as `savevm` kept them in a snapshot, byte for byte. Read-only. */
import { divCeil } from '../units';
import { type FileAttributes, FileError, type OpenedFile, type OpenFlags } from './filesystem';
import {
  attributesOf,
  DEFAULT_BLOCK_SIZE,
  type FileFacts,
  SECTOR_BYTES_OF_STAT,
  type VirtualFile,
} from './virtual-file';

/** @returns bytes read; fewer than `length` only at the end */
export type ReadVmState = (offset: number, target: Uint8Array, at: number, length: number) => number;

export class VmStateFile implements VirtualFile {
  constructor(
    private readonly facts: FileFacts,
    private readonly size: number,
    private readonly readState: ReadVmState,
  ) {}

  attributes(): FileAttributes {
    const blocks = divCeil(this.size, SECTOR_BYTES_OF_STAT);
    return attributesOf(this.facts, 'file', { nlink: 1, size: this.size, blocks, blksize: DEFAULT_BLOCK_SIZE });
  }

  open(flags: OpenFlags): OpenedFile {
    if (flags.write || flags.truncate) throw readOnly();
    return { handle: 0, isDisk: true };
  }

  release(): void {}

  read(_handle: number, offset: number, target: Uint8Array, at: number, length: number): number {
    const count = Math.min(length, this.size - offset);
    return count <= 0 ? 0 : this.readState(offset, target, at, count);
  }

  write(): number {
    throw readOnly();
  }

  fsync(): void {}

  setSize(): void {
    throw readOnly();
  }

  fallocate(): void {
    throw readOnly();
  }

  /** Where it has holes nobody is told. */
  seek(_handle: number, offset: number, what: 'data' | 'hole'): number {
    if (offset < 0 || offset >= this.size)
      throw new FileError('ENXIO', `Cannot seek at ${offset}: the VM state has ${this.size} bytes`);
    return what === 'data' ? offset : this.size;
  }
}

function readOnly(): FileError {
  return new FileError('EROFS', 'Cannot write to a VM state: it is read-only');
}
