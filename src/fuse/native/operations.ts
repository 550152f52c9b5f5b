/**
 * A `FileSystem` as the operations of fuse-native: paths become inode numbers, exceptions become errno numbers, and `done` is called
 * exactly once per operation. That matters more than elsewhere: without it the caller waits for ever, called twice the package
 * writes into memory that libfuse has freed.
 */
import { constants as file } from 'node:fs';
import { constants as host } from 'node:os';
import type Fuse from 'fuse-native';
import { type FileAttributes, FileError, type FileSystem, type FileSystemStatistics } from '../../vfs/filesystem';
import { errnoOf } from '../errno';

const O_ACCMODE = file.O_RDONLY | file.O_WRONLY | file.O_RDWR;
const NAME_BYTES_MAX = 255;
const TWO_32 = 2 ** 32;

interface OpenFile {
  ino: number;
  handle: number;
  /** Opened with O_SYNC or O_DSYNC: each write is flushed. The flag of a single write (RWF_DSYNC) does not get through to us. */
  sync: boolean;
}

/** Runs `serve` and reports its result, or the errno of what it threw. */
function answer(done: Fuse.Done, serve: () => number): void {
  let result: number;
  try {
    result = serve();
  } catch (error) {
    result = -errnoOf(error);
  }
  done(result);
}

/** The same for operations that answer with a value. */
function answerWith<Value>(done: (result: number, value?: Value) => void, serve: () => Value): void {
  let value: Value;
  try {
    value = serve();
  } catch (error) {
    done(-errnoOf(error));
    return;
  }
  done(0, value);
}

/**
 * Left out on purpose, so that libfuse says ENOSYS and the kernel asks no more: flush (close(2) is no flush: a disk promises safety
 * after fsync), fsyncdir, access, opendir, xattrs. The package knows no fallocate, lseek, ioctl, poll or copy_file_range.
 */
export function operationsOf(fileSystem: FileSystem, readOnly: boolean): Fuse.Operations {
  const files = new OpenFiles(fileSystem);
  const inoOf = (path: string): number => resolve(fileSystem, path);
  const forbidden = -(readOnly ? host.errno.EROFS : host.errno.EPERM);
  return {
    getattr: (path, done) => answerWith(done, () => statOf(fileSystem.attributes(inoOf(path)))),
    statfs: (_path, done) => answerWith(done, () => statfsOf(fileSystem.statistics())),
    readdir: (path, done) => {
      answerWith(done, () => ['.', '..', ...fileSystem.list(inoOf(path)).map((entry) => entry.name)]);
    },
    open: (path, flags, done) => answerWith(done, () => files.open(inoOf(path), flags)),
    release: (_path, fd, done) => answer(done, () => files.release(fd)),
    read: (_path, fd, buffer, length, offset, done) => {
      answer(done, () => {
        const { ino, handle } = files.of(fd);
        return fileSystem.read(ino, handle, offset, buffer, 0, length);
      });
    },
    write: (_path, fd, buffer, length, offset, done) => {
      answer(done, () => {
        const { ino, handle, sync } = files.of(fd);
        return fileSystem.write(ino, handle, offset, buffer, 0, length, sync);
      });
    },
    fsync: (_path, _datasync, fd, done) => {
      answer(done, () => {
        const { ino, handle } = files.of(fd);
        fileSystem.fsync(ino, handle);
        return 0;
      });
    },
    truncate: (path, size, done) => answer(done, () => setSize(fileSystem, inoOf(path), size)),
    ftruncate: (_path, fd, size, done) => answer(done, () => setSize(fileSystem, files.of(fd).ino, size)),
    // Accepted and ignored, as `touch` and `cp -p` expect. (The package passes the access time for both.)
    utimens: (_path, _atime, _mtime, done) => done(0),
    chmod: (_path, _mode, done) => done(-host.errno.EPERM),
    chown: (_path, _uid, _gid, done) => done(-host.errno.EPERM),
    create: (_path, _mode, done) => done(forbidden),
    mknod: (_path, _mode, _device, done) => done(forbidden),
    mkdir: (path, _mode, done) => {
      answer(done, () => {
        const { parent, name } = parentOf(fileSystem, path);
        fileSystem.makeDirectory(parent, name);
        return 0;
      });
    },
    unlink: (_path, done) => done(forbidden),
    rmdir: (path, done) => {
      answer(done, () => {
        const { parent, name } = parentOf(fileSystem, path);
        // libfuse finds open files by their paths: without the directory's name it could not serve them.
        fileSystem.removeDirectory(parent, name, false);
        return 0;
      });
    },
    rename: (from, to, done) => {
      answer(done, () => {
        const old = parentOf(fileSystem, from);
        const next = parentOf(fileSystem, to);
        fileSystem.rename(old.parent, old.name, next.parent, next.name);
        return 0;
      });
    },
    link: (_from, _to, done) => done(forbidden),
    symlink: (_from, _to, done) => done(forbidden),
  };
}

function resolve(fileSystem: FileSystem, path: string): number {
  let ino = fileSystem.rootIno;
  for (const name of path.split('/')) {
    if (name !== '') ino = fileSystem.lookup(ino, name);
  }
  return ino;
}

/** The directory that a path ends in, which must exist, and the name there, which need not. */
function parentOf(fileSystem: FileSystem, path: string): { parent: number; name: string } {
  const slash = path.lastIndexOf('/');
  return { parent: resolve(fileSystem, path.slice(0, slash)), name: path.slice(slash + 1) };
}

function setSize(fileSystem: FileSystem, ino: number, size: number): number {
  fileSystem.setSize(ino, size);
  return 0;
}

/** What is open, by numbers of our own: the package takes 0 for "none", and a file system's handles may repeat from file to file. */
class OpenFiles {
  private readonly fileSystem: FileSystem;
  private readonly files = new Map<number, OpenFile>();
  private last = 0;

  constructor(fileSystem: FileSystem) {
    this.fileSystem = fileSystem;
  }

  open(ino: number, flags: number): number {
    const access = flags & O_ACCMODE;
    const { handle } = this.fileSystem.open(ino, {
      read: access !== file.O_WRONLY,
      write: access !== file.O_RDONLY,
      truncate: (flags & file.O_TRUNC) !== 0,
    });
    // 31 bits: the package carries a number as int32. The next free one, for a mount may live long.
    do {
      this.last = this.last === 0x7fffffff ? 1 : this.last + 1;
    } while (this.files.has(this.last));
    this.files.set(this.last, { ino, handle, sync: (flags & file.O_DSYNC) !== 0 });
    return this.last;
  }

  of(fd: number): OpenFile {
    const opened = this.files.get(fd);
    if (opened === undefined) throw new FileError('EBADF', `no open file has the number ${fd}`);
    return opened;
  }

  release(fd: number): number {
    const { ino, handle } = this.of(fd);
    this.files.delete(fd);
    this.fileSystem.release(ino, handle);
    return 0;
  }
}

function statOf(attributes: FileAttributes): Fuse.Stat {
  return {
    mode: (attributes.kind === 'directory' ? file.S_IFDIR : file.S_IFREG) + attributes.mode,
    uid: attributes.uid,
    gid: attributes.gid,
    size: attributes.size,
    dev: 0,
    nlink: attributes.nlink,
    ino: attributes.ino,
    rdev: 0,
    blksize: attributes.blksize,
    blocks: attributes.blocks,
    atime: Math.max(0, Math.floor(attributes.atimeMs)),
    mtime: Math.max(0, Math.floor(attributes.mtimeMs)),
    ctime: Math.max(0, Math.floor(attributes.ctimeMs)),
  };
}

/** The package carries 32 bits of each number: for a large host the unit is made larger until the counts fit. */
function statfsOf(statistics: FileSystemStatistics): Fuse.Statfs {
  let scale = 1;
  while (statistics.blocks / scale >= TWO_32) scale *= 2;
  const unit = statistics.blockSize * scale;
  const free = Math.floor(statistics.blocksFree / scale);
  return {
    bsize: unit,
    frsize: unit,
    blocks: Math.floor(statistics.blocks / scale),
    bfree: free,
    bavail: free,
    files: statistics.files,
    ffree: 0,
    favail: 0,
    fsid: 0,
    flag: 0,
    namemax: NAME_BYTES_MAX,
  };
}
