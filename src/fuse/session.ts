/**
 * A session carries requests between the kernel and a `FileSystem`. Two implementations pass the same test-suite:
 * `kernel/` speaks the FUSE protocol on /dev/fuse with blocking worker threads; `native/` drives the fuse-native package.
 */
import type { FileSystem } from '../vfs/filesystem';

export type SessionKind = 'kernel' | 'native';

/** How a mount appears to the kernel; structured-cloneable. */
export interface MountOptions {
  mountpoint: string;
  /** Shown as the source in /proc/mounts: `imagefs:vm.qed`. */
  source: string;
  readOnly: boolean;
  allowOther: boolean;
  /** Use the page cache for disks instead of direct I/O. */
  kernelCache: boolean;
  /** Passed on as they are: noatime, nodev, nosuid, noexec, ... */
  flags: string[];
}

/** Largest read or write request, bytes. */
export const MAX_REQUEST = 1024 * 1024;

/**
 * `kernel` session, in three steps so that the parts can live in different threads:
 *
 *   const fd = mountKernel(options)          main thread: /dev/fuse opened and mounted; throws BlockError
 *   serveKernel(fd, fileSystem, options)     every worker thread: blocks until the mount is gone, then returns
 *   unmount(mountpoint, lazy)                main thread, asynchronous
 *
 * The first request is INIT; whichever worker reads it answers it. `serveKernel` returns normally when read(2) says
 * ENODEV (unmounted); anything thrown means that this worker is lost.
 */
export interface KernelServeOptions {
  kernelCache: boolean;
  readOnly: boolean;
  /** From `createSeats`, the same for all workers of a mount. Absent: this worker stands alone. */
  seats?: SharedArrayBuffer;
  /** Called again and again while nobody asks; whoever asks meanwhile waits until it returns. @returns false: not any more */
  idle?: () => boolean;
  /** Bits of INIT flags to pretend the kernel does not have; for tests of older kernels. */
  maskInitFlags?: number;
}

/** `native` session: runs on the main thread's event loop. */
export interface NativeSession {
  /** Resolves when the mount answers. */
  readonly mountpoint: string;
  /** Resolves when the kernel has let go of the mount. */
  readonly ended: Promise<void>;
}

export type StartNative = (options: MountOptions, fileSystem: FileSystem) => Promise<NativeSession>;
