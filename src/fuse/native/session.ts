/**
 * The session over the fuse-native package (libfuse 2.9): everything happens on the event loop of the thread that started it, one
 * request at a time. It is for systems where the kernel session cannot run. Against that one it lacks fallocate and lseek, flags
 * of a single write, and shared mappings; requests are 128 KiB at most.
 *
 * Direct I/O is always on, whatever `kernelCache` says. The package can only set it for the whole mount, and with the page cache the
 * kernel reads a file no further than its st_size: `map.json`, which shows 0 as files in /proc do, would be empty, and a text that
 * has grown since it was looked at would be cut. (Tried with both; the shared test-suite has the case.)
 */
import * as fs from 'node:fs';
import { createRequire } from 'node:module';
import type Fuse from 'fuse-native';
import { BlockError } from '../../errors';
import { logOf } from '../../log';
import { duplicateDescriptor } from '../../system/descriptor';
import { POLLERR, pollDescriptor } from '../../system/poll';
import { loadSharedLibrary } from '../../system/shared-library';
import type { FileSystem } from '../../vfs/filesystem';
import {
  absolute,
  checkAllowOther,
  checkDevice,
  checkMountpoint,
  escapeOption,
  FUSE_DEVICE,
  mountAction,
} from '../preconditions';
import type { MountOptions, NativeSession, StartNative } from '../session';
import { abandon } from '../unmount';
import { operationsOf } from './operations';

const log = logOf('fuse:native');

/** The most that libfuse 2.9 takes; without `big_writes` the kernel sends 4 KiB. */
const REQUEST_BYTES = 128 * 1024;

/** Bytes of the package's own copy of the options and of the mountpoint; what is longer would be cut without a word. */
const PACKAGE_TEXT_MAX = 1023;

/** How long to wait at a time for the end of the mount, ms. Nothing happens when it is over. */
const WATCH_MS = 60_000;

/** Mounts and serves on this thread's event loop. Resolves when the mount answers; throws a BlockError. */
export const startNative: StartNative = async (options, fileSystem) => {
  const mountpoint = absolute(options.mountpoint);
  const argument = `-o${nativeOptions(options).join(',')}`;
  for (const text of [argument, mountpoint]) {
    if (Buffer.byteLength(text) <= PACKAGE_TEXT_MAX) continue;
    const message = `${mountAction(mountpoint)}: "${text}" has more than ${PACKAGE_TEXT_MAX} bytes`;
    throw new BlockError('LIMIT_EXCEEDED', message);
  }
  checkMountpoint(mountpoint);
  checkDevice(mountpoint);
  checkAllowOther(options);
  return start(mountpoint, argument, options, fileSystem);
};

/**
 * The whole `-o`. Names and attributes are not kept by the kernel: it cannot be told per file, and a text's size changes.
 */
export function nativeOptions(options: MountOptions): string[] {
  return [
    'big_writes',
    `max_write=${REQUEST_BYTES}`,
    `max_read=${REQUEST_BYTES}`,
    'direct_io',
    'attr_timeout=0',
    'entry_timeout=0',
    'use_ino',
    'default_permissions',
    'nosuid',
    'nodev',
    ...options.flags,
    options.readOnly ? 'ro' : 'rw',
    ...(options.allowOther ? ['allow_other'] : []),
    `fsname=${escapeOption(options.source)}`,
    'subtype=imagefs',
  ];
}

async function start(
  mountpoint: string,
  argument: string,
  options: MountOptions,
  fileSystem: FileSystem,
): Promise<NativeSession> {
  const Package = loadPackage(mountpoint);
  class Session extends Package {
    // The package's own list lacks most of ours, and looks at DEBUG: any `*` in it would turn on libfuse's debug output.
    protected override _fuseOptions(): string {
      return argument;
    }
  }
  // `timeout: false`: the default answers ETIMEDOUT after 15 s and takes the buffer away while the operation still uses it.
  const fuse = new Session(mountpoint, operationsOf(fileSystem, options.readOnly), { timeout: false });
  const before = devicesOf();
  await mounted(fuse, mountpoint);
  const device = devicesOf().find((fd) => !before.includes(fd));
  if (device === undefined) {
    abandon(mountpoint);
    throw new BlockError('IO', `${mountAction(mountpoint)}: /proc/self/fd does not show libfuse's ${FUSE_DEVICE}`);
  }
  // Our own descriptor, so that the number means the same when libfuse has closed its one.
  return { mountpoint, ended: endOf(fuse, duplicateDescriptor(device)) };
}

function loadPackage(mountpoint: string): typeof Fuse {
  try {
    const Package = requirePackage();
    // The package unmounts with a shell command in which a path can hide another command, lazily, and by the name `fusermount`.
    // We unmount ourselves; what is left of its `unmount` only lets its resources go.
    Package.unmount = (_mountpoint, done) => done(null);
    return Package;
  } catch (error) {
    const message = `${mountAction(mountpoint)}: the package fuse-native does not work here (${firstLine(error)}); use --session kernel`;
    throw new BlockError('UNSUPPORTED_FEATURE', message, { cause: error });
  }
}

/**
 * The package needs libfuse.so.2. Where the system has none, the one that the package brings serves as well, but its addon does not
 * look there (`fuse-native configure` would install it for the whole system): it must be loaded before. By `require`: what `import()`
 * could not load it never tries again.
 */
export function requirePackage(): typeof Fuse {
  const load = createRequire(__filename);
  try {
    return load('fuse-native') as typeof Fuse;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_DLOPEN_FAILED') throw error;
    const nextToIt = createRequire(load.resolve('fuse-native'));
    loadSharedLibrary((nextToIt('fuse-shared-library') as { lib: string }).lib);
    return load('fuse-native') as typeof Fuse;
  }
}

function firstLine(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n', 1)[0];
}

function mounted(fuse: Fuse, mountpoint: string): Promise<void> {
  return new Promise((resolve, reject) => {
    fuse.mount((error) => {
      if (!error) {
        resolve();
        return;
      }
      // libfuse and fusermount have written their reason to stderr; the package knows none.
      const message = `${mountAction(mountpoint)}: libfuse refused (${firstLine(error)})`;
      reject(new BlockError('DENIED', message, { path: mountpoint, cause: error }));
    });
  });
}

/** Descriptors of this process that are /dev/fuse. */
function devicesOf(): number[] {
  const found: number[] = [];
  for (const name of fs.readdirSync('/proc/self/fd')) {
    try {
      if (fs.readlinkSync(`/proc/self/fd/${name}`) === FUSE_DEVICE) found.push(Number(name));
    } catch {
      // Closed meanwhile, like the one of this very listing.
    }
  }
  return found;
}

/** poll(2) reports an error on /dev/fuse from the moment when the kernel has let go of the mount, its last lazy user included. */
async function endOf(fuse: Fuse, device: number): Promise<void> {
  try {
    while ((await pollDescriptor(device, POLLERR, WATCH_MS)) === 0);
  } finally {
    fs.closeSync(device);
  }
  await new Promise<void>((resolve) => {
    fuse.unmount((error) => {
      if (error) log('package: %s', error.message);
      resolve();
    });
  });
}
