import { dictionary } from "./dictionary";

export const people = dictionary({
  "people.title": ["People", "人员"],
  "people.about": ["Who may open this console, and as what.", "谁可以打开此控制台，以什么角色。"],
  "people.invite": ["Invite somebody", "邀请人员"],
  "people.name": ["Name", "名称"],
  "people.name.hint": [
    "What the audit log calls them; it stays theirs for good.",
    "审计日志中使用的名称，永久属于此人。",
  ],
  "people.state": ["State", "状态"],
  "people.role": ["Role", "角色"],
  "people.role-of": ["Role of {name}", "{name} 的角色"],
  "people.role.changed": ["{name} is now: {role}", "{name} 现在的角色：{role}"],
  "people.invited": ["Invited", "邀请时间"],
  "people.last": ["Last login", "最近登录"],
  "people.actions": ["Actions", "操作"],
  "people.link": ["New link", "新链接"],
  "people.link.title": ["The link for {name}", "{name} 的链接"],
  "people.link.about": [
    "This is shown once. Send it by a way that only this person reads: whoever opens it first sets the password.",
    "仅显示这一次。请用只有本人能看到的方式发送：最先打开的人将设置密码。",
  ],
  "people.link.ends": ["It works once, until {at}.", "只能使用一次，有效期至 {at}。"],
  "people.disable": ["Disable", "停用"],
  "people.disable.title": ["Disable the account of {name}?", "停用 {name} 的账户？"],
  "people.disable.about": [
    "All their sessions end at once. What they did stays in the audit log.",
    "其所有会话立即结束。其操作仍保留在审计日志中。",
  ],
  "people.disabled": ["The account of {name} is disabled", "{name} 的账户已停用"],
  "people.empty": ["Nobody has an account yet", "还没有任何账户"],
  "person.invited": ["invited", "已邀请"],
  "person.active": ["active", "有效"],
  "person.disabled": ["disabled", "已停用"],
});
