/** What the session uses of the fuse-native package, which brings no types. Negative results are errno numbers. */
declare module 'fuse-native' {
  namespace Fuse {
    type Done = (result: number) => void;

    interface Stat {
      mode: number;
      uid: number;
      gid: number;
      size: number;
      dev: number;
      nlink: number;
      ino: number;
      rdev: number;
      blksize: number;
      blocks: number;
      /** Milliseconds */
      atime: number;
      mtime: number;
      ctime: number;
    }

    interface Statfs {
      bsize: number;
      frsize: number;
      blocks: number;
      bfree: number;
      bavail: number;
      files: number;
      ffree: number;
      favail: number;
      fsid: number;
      flag: number;
      namemax: number;
    }

    /** Operations that are left out are answered with ENOSYS by libfuse, without a call into JavaScript. */
    interface Operations {
      statfs(path: string, done: (result: number, statfs?: Statfs) => void): void;
      getattr(path: string, done: (result: number, stat?: Stat) => void): void;
      fsync(path: string, datasync: number, fd: number, done: Done): void;
      readdir(path: string, done: (result: number, names?: string[]) => void): void;
      truncate(path: string, size: number, done: Done): void;
      ftruncate(path: string, fd: number, size: number, done: Done): void;
      utimens(path: string, atime: number, mtime: number, done: Done): void;
      chown(path: string, uid: number, gid: number, done: Done): void;
      chmod(path: string, mode: number, done: Done): void;
      mknod(path: string, mode: number, dev: number, done: Done): void;
      open(path: string, flags: number, done: (result: number, fd?: number) => void): void;
      /** The buffer is libfuse's memory, dead after `done`. The result is the number of bytes. */
      read(path: string, fd: number, buffer: Buffer, length: number, offset: number, done: Done): void;
      write(path: string, fd: number, buffer: Buffer, length: number, offset: number, done: Done): void;
      release(path: string, fd: number, done: Done): void;
      create(path: string, mode: number, done: Done): void;
      unlink(path: string, done: Done): void;
      rename(from: string, to: string, done: Done): void;
      link(from: string, to: string, done: Done): void;
      symlink(from: string, to: string, done: Done): void;
      mkdir(path: string, mode: number, done: Done): void;
      rmdir(path: string, done: Done): void;
    }
  }

  class Fuse {
    constructor(mountpoint: string, operations: Fuse.Operations, options: { timeout: false });
    /** Unmounts through a shell; replaced by the session. */
    static unmount(mountpoint: string, done: (error: Error | null) => void): void;
    /** Called once when the mount is made: what libfuse gets, beginning with `-o`. */
    protected _fuseOptions(): string;
    mount(done: (error: Error | null) => void): void;
    unmount(done: (error: Error | null) => void): void;
  }

  export = Fuse;
}
