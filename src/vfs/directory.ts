/** A folder of a mount. Its content is fixed when the tree is built. */
import type { DirectoryEntry, FileAttributes } from './filesystem';
import { FileError } from './filesystem';
import { NAME_MAX_BYTES } from './names';
import { attributesOf, DEFAULT_BLOCK_SIZE, type FileFacts } from './virtual-file';

export class Directory {
  private readonly facts: FileFacts;
  private readonly entries: readonly DirectoryEntry[];
  private readonly inoByName: ReadonlyMap<string, number>;
  private readonly nlink: number;

  constructor(facts: FileFacts, entries: readonly DirectoryEntry[]) {
    this.facts = facts;
    this.entries = entries;
    this.inoByName = new Map(entries.map(({ name, ino }) => [name, ino]));
    // `.` here, the entry in the parent, and `..` in each folder inside: what find(1) expects of a Unix directory.
    this.nlink = 2 + entries.filter(({ kind }) => kind === 'directory').length;
  }

  attributes(): FileAttributes {
    return attributesOf(this.facts, 'directory', {
      nlink: this.nlink,
      size: 0,
      blocks: 0,
      blksize: DEFAULT_BLOCK_SIZE,
    });
  }

  lookup(name: string): number {
    const ino = this.inoByName.get(name);
    if (ino !== undefined) return ino;
    // The kernel leaves this to FUSE servers, though statfs tells programs of the limit.
    if (Buffer.byteLength(name) > NAME_MAX_BYTES) throw new FileError('ENAMETOOLONG', 'This name is too long');
    throw new FileError('ENOENT', `There is no file "${name}" here`);
  }

  list(): DirectoryEntry[] {
    return [...this.entries];
  }
}
