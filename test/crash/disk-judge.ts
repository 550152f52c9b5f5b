/**
 * What must be true after a power cut: the image opens; no table is wrong; what was flushed is there, and each byte is what
 * it was at the last flush or what was written since; opened for writing, and cut again meanwhile, it stays so.
 */
import type { ImageNode } from '../../src/block/image-node';
import { readQedHeader } from '../../src/formats/qed/header';
import type { RecordedOperation } from '../../src/storage/recording';
import { type Cut, eachCut } from '../helpers/power-cut';
import { patternBytes, type Random } from '../helpers/random';
import { contentOf } from '../helpers/snapshot-model';
import { compareDisk, type DiskRun } from './disk-run';
import { type CrashFiles, emptyFiles, load, openFiles } from './images';
import type { Qemu } from './qemu';
import { verdictOn } from './verdict';

export interface JudgeOptions {
  random: Random;
  /** How many of the states are opened for writing. */
  reopen: number;
  /** How many of them QEMU looks at; 0 without it. */
  ask: number;
  qemu?: Qemu;
}

export class DiskJudge {
  /** States that were opened for writing. */
  reopened = 0;
  /** Those of them that were changed by that at once, and cut again. */
  repairs = 0;
  private readonly files: CrashFiles;
  private readonly again: CrashFiles;

  constructor(
    private readonly run: DiskRun,
    private readonly options: JudgeOptions,
  ) {
    const { written, base } = run.files;
    this.files = { ...emptyFiles({ written, base }), base };
    this.again = { ...emptyFiles({ written, base }), base };
  }

  /** @returns what is wrong */
  visit(cut: Cut): string | undefined {
    const { files, run, options } = this;
    load(files, cut.states);
    const unsound = unsoundness(files);
    if (unsound !== undefined) return unsound;
    if (this.mustBeDirty(cut.given) && !readQedHeader(files.written[0]).dirty) {
      return 'tables changed, and need-check is not set';
    }
    const { node } = openFiles(files);
    const problem = compareDisk(run, node, cut.given);
    if (problem !== undefined) return problem;
    if (options.qemu !== undefined && options.random.chance(options.ask)) {
      const theirs = options.qemu.judge(run.image, files, contentOf(node));
      if (theirs !== undefined) return theirs;
    }
    return options.random.chance(options.reopen) ? this.reopen(cut) : undefined;
  }

  /** Tables of a stand-alone QED image were changed, and nobody has touched the header since: the bit was durable before. */
  private mustBeDirty(given: number): boolean {
    const { log, image } = this.run;
    if (image.image.format !== 'qed' || image.backing !== undefined) return false;
    for (let at = given - 1; at >= 0; at--) {
      const { event } = log[at];
      if (event === 'header-update') return false;
      if (event === 'l1-update' || event === 'l2-update') return true;
    }
    return false;
  }

  /** Opens it as its owner would: dirty images are checked, and it goes on from there. */
  private reopen(cut: Cut): string | undefined {
    this.reopened++;
    const { files, run } = this;
    const repair: RecordedOperation[] = [];
    const { node, finish } = openFiles(files, repair);
    const during = this.cutDuring(repair, cut);
    if (during !== undefined) return `cut again while it was opened: ${during}`;
    const after = compareDisk(run, node, cut.given) ?? this.goOn(node);
    finish();
    const problem = after ?? unsoundness(files);
    return problem === undefined ? undefined : `reopened: ${problem}`;
  }

  /** The power fails again while the image is opened for writing, and perhaps repaired. */
  private cutDuring(repair: RecordedOperation[], first: Cut): string | undefined {
    if (repair.length === 0) return undefined;
    this.repairs++;
    let problem: string | undefined;
    const { again, run, options } = this;
    eachCut(first.states, repair, { random: options.random, subsets: 2, exhaustive: 4 }, ({ states }) => {
      load(again, states);
      problem = unsoundness(again) ?? compareDisk(run, openFiles(again).node, first.given);
      return problem === undefined;
    });
    return problem;
  }

  /** Writes into a new cluster, and beside it nothing changes. */
  private goOn(node: ImageNode): string | undefined {
    const before = contentOf(node);
    const offset = this.options.random.below(before.length - 600);
    const bytes = patternBytes(offset, 600, 4242);
    node.write(offset, bytes, 0, 600);
    node.flush();
    before.set(bytes, offset);
    return Buffer.compare(before, contentOf(node)) === 0 ? undefined : 'a write after reopening changed other bytes';
  }
}

/** What our own check finds beside leaks. */
export function unsoundness({ written: [top] }: CrashFiles): string | undefined {
  const { wrong, flags, words } = verdictOn(top);
  return wrong + flags === 0 ? undefined : `${wrong} errors, ${flags} wrong flags: ${words}`;
}
