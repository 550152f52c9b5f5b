/** `imagefs mount`: checks everything that can be checked, then starts the daemon and waits until its mount answers. */
import path from 'node:path';
import { checkEmpty, checkMountpoint, checkOverlap } from '../../daemon/checks';
import type { DaemonConfig } from '../../daemon/config';
import { type LaunchedDaemon, launchDaemon } from '../../daemon/launch';
import { collectSources } from '../../daemon/sources';
import { checkDevice } from '../../fuse/preconditions';
import { inLimitedMemoryGroup } from '../../system/memory-group';
import { setIoFlusher } from '../../system/prctl';
import { type Command, UsageError } from '../command';
import { flushOutput, printError, printLine } from '../output';
import { type MountSettings, parseMountArguments } from './mount-options';

const HELP = `Usage: imagefs mount [OPTION]... IMAGE... MOUNTPOINT
       imagefs mount [OPTION]... DIRECTORY MOUNTPOINT

Shows a disk image as files in the empty directory MOUNTPOINT: "disk" is the guest's disk,
"layers/" holds a folder for each layer of the backing chain. Several images, or a directory
of images, get a folder each, named after the file. Returns when the mount answers.

  -r, --read-only          nothing can be written; the image stays as it is
  -f, --foreground         stay until the mount is gone; Ctrl-C unmounts
  -d, --debug              as -f, and print what happens
  -o OPTION[,OPTION]...    as mount(8); every option here can be one: -o ro,format=qed,threads=8
      --format FORMAT      of the images (qcow2, qcow, qed, raw); without it their first bytes tell
      --threads N          exactly N worker threads (default: the number of cores, at least 4
                           at first and 8 in the end)
      --session KIND       kernel: FUSE protocol over /dev/fuse; native: the fuse-native
                           package; auto (default): kernel
      --cache-size SIZE    memory for mapping tables of all images (default 32M)
      --backing WHERE      directory (default): raw backing files must lie in the image's own
                           directory; any: wherever the image says. Images are untrusted
      --growable           writing or truncating past its end makes the disk larger
      --kernel-cache       use the kernel's page cache for disks
      --allow-other        let other users in (as the mode of the image file allows)
  -U, --force-share        open although another program writes to the image (with -r); what is
                           shown may be inconsistent, and info.json says so
      --share-rw           let others write to raw images too: their programs must agree on who
                           writes what (a cluster file system). Images of other formats stay locked
      --log FILE           append the daemon's messages to FILE

Words of mount(8) and fstab (defaults, noauto, nofail, x-*, ...) are accepted in -o.
Exit code: 0 mounted, 1 not mounted, 2 wrong usage.

Example: imagefs mount vm.qed /mnt/vm && dd if=/mnt/vm/disk of=vm.raw bs=1M
Unmount: imagefs umount /mnt/vm`;

export interface MountRequest {
  images: string[];
  mountpoint: string;
  settings: MountSettings;
  /** As /proc/mounts shall show it; absent: made of the image's name. */
  source?: string;
  /** Check everything, mount nothing (mount -f). */
  checkOnly?: boolean;
}

/** Throws BlockError with one line when it cannot be mounted. */
export async function mountImages(
  request: MountRequest,
  say: (message: string) => void,
): Promise<LaunchedDaemon | undefined> {
  const { images, settings } = request;
  if (settings.forceShare && !settings.readOnly) {
    throw new UsageError('--force-share needs --read-only: two writers would destroy the image');
  }
  const named = images.map((image) => path.resolve(image));
  const { sources, single } = collectSources(images, settings.format);
  const mountpoint = await checkMountpoint(request.mountpoint, say);
  for (const image of [...images, ...sources.map((source) => source.path)]) {
    checkOverlap(image, mountpoint, request.mountpoint);
  }
  checkEmpty(mountpoint, request.mountpoint);
  checkDevice(request.mountpoint);
  if (request.checkOnly) return undefined;

  const { session, log, ...rest } = settings;
  const config: DaemonConfig = {
    ...rest,
    mountpoint,
    source: request.source ?? `imagefs:${images.map((image) => path.basename(path.resolve(image))).join(',')}`,
    sources,
    single,
    session: session === 'auto' ? defaultSession() : session,
    ...(log === undefined ? {} : { log: path.resolve(log) }),
  };
  // Inherited by the daemon and all its threads; only possible before they start.
  if (!setIoFlusher()) warnOfReclaim(settings, say);
  return launchDaemon(config, named);
}

/** Without PR_SET_IO_FLUSHER the daemon may have to wait, for memory, until it has itself written what a loop device holds back. */
function warnOfReclaim(settings: MountSettings, say: (message: string) => void): void {
  if (!settings.readOnly && inLimitedMemoryGroup()) {
    say(
      'The kernel refused PR_SET_IO_FLUSHER (needs CAP_SYS_RESOURCE), and the memory of this control group is limited: ' +
        'a loop device over the mount may hang when programs of the same group write to it',
    );
  } else if (settings.debug) {
    say('The kernel refused PR_SET_IO_FLUSHER (needs CAP_SYS_RESOURCE); going on without');
  }
}

function defaultSession(): 'kernel' | 'native' {
  return process.platform === 'linux' ? 'kernel' : 'native';
}

async function run(args: string[]): Promise<number> {
  const { settings, positionals } = parseMountArguments(args);
  const mountpoint = positionals.at(-1);
  const images = positionals.slice(0, -1);
  if (mountpoint === undefined || images.length === 0) {
    throw new UsageError('Name at least one image and the mountpoint: imagefs mount IMAGE MOUNTPOINT');
  }
  const say = (message: string): void => printError(`imagefs: ${message}`);
  const daemon = await mountImages({ images, mountpoint, settings }, say);
  if (daemon === undefined) return 0;
  for (const warning of daemon.warnings) say(warning);
  return settings.foreground ? stay(daemon, images, mountpoint) : 0;
}

/** Waits in the foreground until the daemon has ended. Signals go on to it; the terminal sends Ctrl-C to both, which does no harm. */
async function stay(daemon: LaunchedDaemon, images: string[], mountpoint: string): Promise<number> {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => daemon.signal(signal));
  const names = images.map((image) => `"${image}"`).join(', ');
  printLine(`Mounted ${names} at "${mountpoint}". Press Ctrl-C or run imagefs umount ${mountpoint} to stop`);
  flushOutput();
  return daemon.ended;
}

export const command: Command = {
  name: 'mount',
  summary: 'Show images as files in a directory',
  help: HELP,
  run,
};
