/**
 * `snapshots/NAME/.revert`: writing `now` to it makes the disk what the snapshot is; `force` does so even while the disk is open. No listing
 * shows it, so that nothing which copies or walks the tree meets it (docs/adr/0011).
 */
import { type FileAttributes, FileError, type OpenedFile } from './filesystem';
import { attributesOf, DEFAULT_BLOCK_SIZE, type FileFacts, type VirtualFile } from './virtual-file';

/** More than the longest word with its newline. */
const WORD_BYTES_MAX = 16;

export class RevertFile implements VirtualFile {
  constructor(
    private readonly facts: FileFacts,
    private readonly revert: (force: boolean) => void,
  ) {}

  attributes(): FileAttributes {
    return attributesOf(this.facts, 'file', { nlink: 1, size: 0, blocks: 0, blksize: DEFAULT_BLOCK_SIZE });
  }

  open(): OpenedFile {
    return { handle: 0, isDisk: false };
  }

  release(): void {}

  read(): number {
    return 0;
  }

  write(_handle: number, offset: number, source: Uint8Array, at: number, length: number): number {
    const word = length > WORD_BYTES_MAX ? '' : Buffer.from(source.subarray(at, at + length)).toString('latin1');
    const known = /^(now|force)\n?$/.exec(word)?.[1];
    if (offset !== 0 || known === undefined) {
      throw new FileError(
        'EINVAL',
        'Write "now" to revert the disk to the snapshot, "force" to do so while it is open',
      );
    }
    this.revert(known === 'force');
    return length;
  }

  fsync(): void {}

  /** The shell's `>` truncates. */
  setSize(): void {}

  fallocate(): void {
    throw new FileError('EOPNOTSUPP');
  }

  seek(): number {
    throw new FileError('ENXIO');
  }
}
